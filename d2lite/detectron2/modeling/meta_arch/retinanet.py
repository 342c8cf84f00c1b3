"""RetinaNet: names only."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

__all__ = ["RetinaNet"]

RetinaNet = refused_class("RetinaNet", __name__, DenseDetector)
RetinaNetHead = refused_class("RetinaNetHead", __name__, nn.Module)
META_ARCH_REGISTRY.register(RetinaNet)
