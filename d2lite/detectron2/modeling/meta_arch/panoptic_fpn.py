"""Panoptic FPN: names only."""
from detectron2._lite import refused, refused_class
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN

__all__ = ["PanopticFPN"]

PanopticFPN = refused_class("PanopticFPN", __name__, GeneralizedRCNN)
combine_semantic_and_instance_outputs = refused("combine_semantic_and_instance_outputs", __name__)
META_ARCH_REGISTRY.register(PanopticFPN)
