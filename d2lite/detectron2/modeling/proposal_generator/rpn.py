"""The region proposal network: its heads' registry; the network needs a full Detectron2."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.utils.registry import Registry

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")

RPN = refused_class("RPN", __name__, nn.Module)
StandardRPNHead = refused_class("StandardRPNHead", __name__, nn.Module)
PROPOSAL_GENERATOR_REGISTRY.register(RPN)
RPN_HEAD_REGISTRY.register(StandardRPNHead)


def build_rpn_head(cfg, input_shape):
    """The head MODEL.RPN.HEAD_NAME."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)
