"""Multiscale vision transformers: a name only."""
from torch import nn

from detectron2._lite import refused, refused_class

__all__ = ["MViT"]

MViT = refused_class("MViT", __name__, nn.Module)
MultiScaleAttention = refused_class("MultiScaleAttention", __name__, nn.Module)
MultiScaleBlock = refused_class("MultiScaleBlock", __name__, nn.Module)
attention_pool = refused("attention_pool", __name__)
