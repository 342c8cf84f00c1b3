"""R-CNN: names only."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]

GeneralizedRCNN = refused_class("GeneralizedRCNN", __name__, nn.Module)
ProposalNetwork = refused_class("ProposalNetwork", __name__, nn.Module)
META_ARCH_REGISTRY.register(GeneralizedRCNN)
META_ARCH_REGISTRY.register(ProposalNetwork)
