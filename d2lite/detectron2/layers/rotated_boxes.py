"""The overlap of rotated boxes needs a compiled operator; the name exists so that code which mentions it imports."""
from detectron2._lite import refused

pairwise_iou_rotated = refused("pairwise_iou_rotated", __name__)
