"""Rotated boxes need compiled operators; the names exist so that code which mentions them can be imported."""
from detectron2._lite import refused, refused_class

from .boxes import Boxes

RotatedBoxes = refused_class("RotatedBoxes", __name__, Boxes)
pairwise_iou = refused("pairwise_iou", __name__)
