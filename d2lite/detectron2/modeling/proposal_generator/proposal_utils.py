"""Proposals from the region proposal network: names only."""
from detectron2._lite import refused

add_ground_truth_to_proposals = refused("add_ground_truth_to_proposals", __name__)
add_ground_truth_to_proposals_single_image = refused("add_ground_truth_to_proposals_single_image", __name__)
find_top_rpn_proposals = refused("find_top_rpn_proposals", __name__)
