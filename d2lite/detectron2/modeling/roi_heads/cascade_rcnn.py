"""Cascade R-CNN: a name only."""
from detectron2._lite import refused_class
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

CascadeROIHeads = refused_class("CascadeROIHeads", __name__, StandardROIHeads)
_ScaleGradient = refused_class("_ScaleGradient", __name__)
ROI_HEADS_REGISTRY.register(CascadeROIHeads)
