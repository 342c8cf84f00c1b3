"""PointRend's point heads; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class
from detectron2.utils.registry import Registry

POINT_HEAD_REGISTRY = Registry("POINT_HEAD")

ImplicitPointHead = refused_class("ImplicitPointHead", __name__, nn.Module)
StandardPointHead = refused_class("StandardPointHead", __name__, nn.Module)
build_point_head = refused("build_point_head", __name__)
roi_mask_point_loss = refused("roi_mask_point_loss", __name__)
