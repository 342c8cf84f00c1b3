"""PointRend's head for semantic segmentation; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class

PointRendSemSegHead = refused_class("PointRendSemSegHead", __name__, nn.Module)
calculate_uncertainty = refused("calculate_uncertainty", __name__)
