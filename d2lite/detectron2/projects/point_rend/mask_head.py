"""PointRend's mask heads; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class

ConvFCHead = refused_class("ConvFCHead", __name__, nn.Module)
ImplicitPointRendMaskHead = refused_class("ImplicitPointRendMaskHead", __name__, nn.Module)
PointRendMaskHead = refused_class("PointRendMaskHead", __name__, nn.Module)
calculate_uncertainty = refused("calculate_uncertainty", __name__)
