"""Tracking objects through a video; not part of the lite runtime."""
from .base_tracker import TRACKER_HEADS_REGISTRY, BaseTracker, build_tracker_head
from .bbox_iou_tracker import BBoxIOUTracker
from .hungarian_tracker import BaseHungarianTracker
from .iou_weighted_hungarian_bbox_iou_tracker import IOUWeightedHungarianBBoxIOUTracker
from .utils import create_prediction_pairs
from .vanilla_hungarian_bbox_iou_tracker import VanillaHungarianBBoxIOUTracker

__all__ = [
    "BBoxIOUTracker",
    "BaseHungarianTracker",
    "BaseTracker",
    "IOUWeightedHungarianBBoxIOUTracker",
    "TRACKER_HEADS_REGISTRY",
    "VanillaHungarianBBoxIOUTracker",
    "build_tracker_head",
    "create_prediction_pairs",
]
