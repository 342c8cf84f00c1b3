"""Test-time augmentation of R-CNN: names only."""
from torch import nn

from detectron2._lite import refused_class

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA"]

DatasetMapperTTA = refused_class("DatasetMapperTTA", __name__)
GeneralizedRCNNWithTTA = refused_class("GeneralizedRCNNWithTTA", __name__, nn.Module)
