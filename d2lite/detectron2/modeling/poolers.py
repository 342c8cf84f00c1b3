"""Pooling of regions from feature pyramids: names only."""
from torch import nn

from detectron2._lite import refused, refused_class

__all__ = ["ROIPooler"]

ROIPooler = refused_class("ROIPooler", __name__, nn.Module)
assign_boxes_to_levels = refused("assign_boxes_to_levels", __name__)
convert_boxes_to_pooler_format = refused("convert_boxes_to_pooler_format", __name__)
