"""Panoptic-DeepLab; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class
from detectron2.utils.registry import Registry

INS_EMBED_BRANCHES_REGISTRY = Registry("INS_EMBED_BRANCHES")

PanopticDeepLab = refused_class("PanopticDeepLab", __name__, nn.Module)
PanopticDeepLabInsEmbedHead = refused_class("PanopticDeepLabInsEmbedHead", __name__, nn.Module)
PanopticDeepLabSemSegHead = refused_class("PanopticDeepLabSemSegHead", __name__, nn.Module)
PanopticDeeplabDatasetMapper = refused_class("PanopticDeeplabDatasetMapper", __name__)
PanopticDeepLabTargetGenerator = refused_class("PanopticDeepLabTargetGenerator", __name__)
add_panoptic_deeplab_config = refused("add_panoptic_deeplab_config", __name__)
build_ins_embed_branch = refused("build_ins_embed_branch", __name__)
get_panoptic_segmentation = refused("get_panoptic_segmentation", __name__)
