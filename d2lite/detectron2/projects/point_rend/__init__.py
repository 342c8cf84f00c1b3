"""PointRend: its point sampling, colour augmentation and keys; its heads are not part of the lite runtime."""
from .color_augmentation import ColorAugSSDTransform
from .config import add_pointrend_config
from .mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from .roi_heads import PointRendROIHeads
from .semantic_seg import PointRendSemSegHead
