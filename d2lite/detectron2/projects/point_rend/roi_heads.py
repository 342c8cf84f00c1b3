"""PointRend's ROI heads; the name exists so that code which mentions it can be imported."""
from torch import nn

from detectron2._lite import refused_class

PointRendROIHeads = refused_class("PointRendROIHeads", __name__, nn.Module)
