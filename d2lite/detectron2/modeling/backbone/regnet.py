"""RegNet: names only."""
from torch import nn

from detectron2._lite import refused, refused_class

__all__ = ["AnyNet", "RegNet", "ResStem", "SimpleStem", "VanillaBlock", "ResBasicBlock", "ResBottleneckBlock"]

SE = refused_class("SE", __name__, nn.Module)
AnyStage = refused_class("AnyStage", __name__, nn.Module)
BasicTransform = refused_class("BasicTransform", __name__, nn.Module)
BottleneckTransform = refused_class("BottleneckTransform", __name__, nn.Module)
AnyNet = refused_class("AnyNet", __name__, nn.Module)
RegNet = refused_class("RegNet", __name__, nn.Module)
ResStem = refused_class("ResStem", __name__, nn.Module)
SimpleStem = refused_class("SimpleStem", __name__, nn.Module)
VanillaBlock = refused_class("VanillaBlock", __name__, nn.Module)
ResBasicBlock = refused_class("ResBasicBlock", __name__, nn.Module)
ResBottleneckBlock = refused_class("ResBottleneckBlock", __name__, nn.Module)
adjust_block_compatibility = refused("adjust_block_compatibility", __name__)
conv2d = refused("conv2d", __name__)
gap2d = refused("gap2d", __name__)
generate_regnet_parameters = refused("generate_regnet_parameters", __name__)
init_weights = refused("init_weights", __name__)
pool2d = refused("pool2d", __name__)
