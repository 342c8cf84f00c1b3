"""The base of trackers, and the registry for them."""
from detectron2._lite import refused, refused_class
from detectron2.utils.registry import Registry

TRACKER_HEADS_REGISTRY = Registry("TRACKER_HEADS")

BaseTracker = refused_class("BaseTracker", __name__)
build_tracker_head = refused("build_tracker_head", __name__)
