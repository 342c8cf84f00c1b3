"""DeepLab's heads; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused_class

DeepLabV3Head = refused_class("DeepLabV3Head", __name__, nn.Module)
DeepLabV3PlusHead = refused_class("DeepLabV3PlusHead", __name__, nn.Module)
