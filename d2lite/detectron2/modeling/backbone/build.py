"""Backbones by name."""
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.registry import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Functions or classes called with (cfg, input_shape: ShapeSpec) that return a Backbone."


def build_backbone(cfg, input_shape=None):
    """The backbone MODEL.BACKBONE.NAME; without `input_shape` it takes as many channels as PIXEL_MEAN has."""
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    assert isinstance(backbone, Backbone), f"{cfg.MODEL.BACKBONE.NAME} built {type(backbone)}, not a Backbone"
    return backbone
