"""Outputs of Fast R-CNN: names only."""
from torch import nn

from detectron2._lite import refused, refused_class

__all__ = ["fast_rcnn_inference", "FastRCNNOutputLayers"]

FastRCNNOutputLayers = refused_class("FastRCNNOutputLayers", __name__, nn.Module)
fast_rcnn_inference = refused("fast_rcnn_inference", __name__)
fast_rcnn_inference_single_image = refused("fast_rcnn_inference_single_image", __name__)
_log_classification_stats = refused("_log_classification_stats", __name__)
