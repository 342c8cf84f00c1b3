"""Anchors: their registry; the generators need a full Detectron2."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")

BufferList = refused_class("BufferList", __name__, nn.Module)
DefaultAnchorGenerator = refused_class("DefaultAnchorGenerator", __name__, nn.Module)
RotatedAnchorGenerator = refused_class("RotatedAnchorGenerator", __name__, nn.Module)
ANCHOR_GENERATOR_REGISTRY.register(DefaultAnchorGenerator)
ANCHOR_GENERATOR_REGISTRY.register(RotatedAnchorGenerator)


def build_anchor_generator(cfg, input_shape):
    """The generator MODEL.ANCHOR_GENERATOR.NAME."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
