"""Boxes, masks, keypoints, and the instances of an image that hold them."""
from .boxes import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from .image_list import ImageList
from .instances import Instances
from .keypoints import Keypoints, heatmaps_to_keypoints
from .masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask
from .rotated_boxes import RotatedBoxes
from .rotated_boxes import pairwise_iou as pairwise_iou_rotated

__all__ = [
    "BitMasks", "BoxMode", "Boxes", "ImageList", "Instances", "Keypoints", "PolygonMasks", "ROIMasks",
    "RotatedBoxes", "heatmaps_to_keypoints", "pairwise_ioa", "pairwise_iou", "pairwise_iou_rotated",
    "pairwise_point_box_distance", "polygons_to_bitmask",
]

from detectron2.utils.env import fixup_module_metadata

fixup_module_metadata(__name__, globals(), __all__)
del fixup_module_metadata
