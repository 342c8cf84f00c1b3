"""Boxes as offsets from anchors: names only."""
from detectron2._lite import refused, refused_class

__all__ = ["Box2BoxTransform", "Box2BoxTransformRotated", "Box2BoxTransformLinear"]

Box2BoxTransform = refused_class("Box2BoxTransform", __name__)
Box2BoxTransformRotated = refused_class("Box2BoxTransformRotated", __name__)
Box2BoxTransformLinear = refused_class("Box2BoxTransformLinear", __name__)
_dense_box_regression_loss = refused("_dense_box_regression_loss", __name__)
