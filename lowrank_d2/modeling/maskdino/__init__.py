"""Mask DINO (Li et al. 2023, https://arxiv.org/abs/2206.02777)."""
from lowrank_d2.modeling.maskdino.meta_arch import MaskDINO  # noqa: F401
