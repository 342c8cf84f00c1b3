"""Rotated proposals: names only."""
from detectron2._lite import refused, refused_class
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN

RRPN = refused_class("RRPN", __name__, RPN)
find_top_rrpn_proposals = refused("find_top_rrpn_proposals", __name__)
PROPOSAL_GENERATOR_REGISTRY.register(RRPN)
