"""Per-region heads: their registry; the heads need a full Detectron2."""
from torch import nn

from detectron2._lite import refused, refused_class
from detectron2.utils.registry import Registry

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")

ROIHeads = refused_class("ROIHeads", __name__, nn.Module)
Res5ROIHeads = refused_class("Res5ROIHeads", __name__, ROIHeads)
StandardROIHeads = refused_class("StandardROIHeads", __name__, ROIHeads)
select_foreground_proposals = refused("select_foreground_proposals", __name__)
select_proposals_with_visible_keypoints = refused("select_proposals_with_visible_keypoints", __name__)
ROI_HEADS_REGISTRY.register(Res5ROIHeads)
ROI_HEADS_REGISTRY.register(StandardROIHeads)


def build_roi_heads(cfg, input_shape):
    """The heads MODEL.ROI_HEADS.NAME."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)
