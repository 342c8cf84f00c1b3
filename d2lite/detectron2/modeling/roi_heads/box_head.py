"""Box heads: their registry; the heads need a full Detectron2."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.utils.registry import Registry

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")

FastRCNNConvFCHead = refused_class("FastRCNNConvFCHead", __name__, nn.Module)
ROI_BOX_HEAD_REGISTRY.register(FastRCNNConvFCHead)


def build_box_head(cfg, input_shape):
    """The head MODEL.ROI_BOX_HEAD.NAME."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
