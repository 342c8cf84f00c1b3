"""FCOS: names only."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

__all__ = ["FCOS"]

FCOS = refused_class("FCOS", __name__, DenseDetector)
FCOSHead = refused_class("FCOSHead", __name__, nn.Module)
