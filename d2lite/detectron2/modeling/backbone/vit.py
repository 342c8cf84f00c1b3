"""Plain vision transformers: names only."""
from torch import nn

from detectron2._lite import refused, refused_class

__all__ = ["ViT", "SimpleFeaturePyramid", "get_vit_lr_decay_rate"]

ViT = refused_class("ViT", __name__, nn.Module)
SimpleFeaturePyramid = refused_class("SimpleFeaturePyramid", __name__, nn.Module)
Attention = refused_class("Attention", __name__, nn.Module)
Block = refused_class("Block", __name__, nn.Module)
ResBottleneckBlock = refused_class("ResBottleneckBlock", __name__, nn.Module)
get_vit_lr_decay_rate = refused("get_vit_lr_decay_rate", __name__)
