"""DeepLab's ResNet; the names exist so that code which mentions them can be imported."""
from torch import nn

from detectron2._lite import refused, refused_class

DeepLabStem = refused_class("DeepLabStem", __name__, nn.Module)
build_resnet_deeplab_backbone = refused("build_resnet_deeplab_backbone", __name__)
