"""Multiscale vision transformers: a name only."""
from torch import nn

from detectron2._lite import refused_class

__all__ = ["MViT"]

MViT = refused_class("MViT", __name__, nn.Module)
