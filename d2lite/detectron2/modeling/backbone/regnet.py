"""RegNet: names only."""
from torch import nn

from detectron2._lite import refused_class

__all__ = ["AnyNet", "RegNet", "ResStem", "SimpleStem", "VanillaBlock", "ResBasicBlock", "ResBottleneckBlock"]

AnyNet = refused_class("AnyNet", __name__, nn.Module)
RegNet = refused_class("RegNet", __name__, nn.Module)
ResStem = refused_class("ResStem", __name__, nn.Module)
SimpleStem = refused_class("SimpleStem", __name__, nn.Module)
VanillaBlock = refused_class("VanillaBlock", __name__, nn.Module)
ResBasicBlock = refused_class("ResBasicBlock", __name__, nn.Module)
ResBottleneckBlock = refused_class("ResBottleneckBlock", __name__, nn.Module)
