"""Rotated regions: names only."""
from detectron2._lite import refused, refused_class
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

RROIHeads = refused_class("RROIHeads", __name__, StandardROIHeads)
RotatedFastRCNNOutputLayers = refused_class("RotatedFastRCNNOutputLayers", __name__, FastRCNNOutputLayers)
fast_rcnn_inference_rotated = refused("fast_rcnn_inference_rotated", __name__)
fast_rcnn_inference_single_image_rotated = refused("fast_rcnn_inference_single_image_rotated", __name__)
ROI_HEADS_REGISTRY.register(RROIHeads)
