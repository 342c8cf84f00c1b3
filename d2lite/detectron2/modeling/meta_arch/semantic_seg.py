"""Semantic segmentation heads by name; SemanticSegmentor and its FPN head need a full Detectron2."""
from torch import nn

from detectron2._lite import refused_class
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.utils.registry import Registry

__all__ = ["SemanticSegmentor", "SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "build_sem_seg_head"]

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")

SemanticSegmentor = refused_class("SemanticSegmentor", __name__, nn.Module)
SemSegFPNHead = refused_class("SemSegFPNHead", __name__, nn.Module)
META_ARCH_REGISTRY.register(SemanticSegmentor)
SEM_SEG_HEADS_REGISTRY.register(SemSegFPNHead)


def build_sem_seg_head(cfg, input_shape):
    """The head MODEL.SEM_SEG_HEAD.NAME over {feature name: ShapeSpec}."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)
