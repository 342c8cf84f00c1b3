"""Backbones that Detectron2 has not, or not under the names that configs use."""
from lowrank_d2.modeling.backbone.swin import D2SwinTransformer  # noqa: F401
