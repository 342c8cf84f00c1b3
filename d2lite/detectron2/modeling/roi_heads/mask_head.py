"""Mask heads: their registry; the heads need a full Detectron2."""
from torch import nn

from detectron2._lite import refused, refused_class
from detectron2.utils.registry import Registry

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")

BaseMaskRCNNHead = refused_class("BaseMaskRCNNHead", __name__, nn.Module)
MaskRCNNConvUpsampleHead = refused_class("MaskRCNNConvUpsampleHead", __name__, BaseMaskRCNNHead)
mask_rcnn_inference = refused("mask_rcnn_inference", __name__)
mask_rcnn_loss = refused("mask_rcnn_loss", __name__)
ROI_MASK_HEAD_REGISTRY.register(MaskRCNNConvUpsampleHead)


def build_mask_head(cfg, input_shape):
    """The head MODEL.ROI_MASK_HEAD.NAME."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
