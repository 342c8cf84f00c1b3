"""Models of mmdetection: names only."""
from torch import nn

from detectron2._lite import refused_class

MMDetBackbone = refused_class("MMDetBackbone", __name__, nn.Module)
MMDetDetector = refused_class("MMDetDetector", __name__, nn.Module)
