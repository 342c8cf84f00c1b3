"""Deformable convolutions need compiled operators; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class

DeformConv = refused_class("DeformConv", __name__, nn.Module)
ModulatedDeformConv = refused_class("ModulatedDeformConv", __name__, nn.Module)
deform_conv = refused("deform_conv", __name__)
modulated_deform_conv = refused("modulated_deform_conv", __name__)
