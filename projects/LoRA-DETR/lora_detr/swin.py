"""The Swin Transformer of Relation-DETR, whose outputs have no norms."""
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from lowrank_d2.modeling.backbone.swin import FEATURES, D2SwinTransformer


@BACKBONE_REGISTRY.register()
class SwinWithoutNorms(D2SwinTransformer):
    """Gives its stages' outputs as they are; MODEL.BACKBONE.FREEZE_AT counts as for a ResNet."""

    @configurable
    def __init__(self, *, freeze_at: int, **swin: Any):
        """
        Args:
            freeze_at: 1 freezes the patch embedding, 2 also the first stage with the merging behind it, and so on.
            swin: of `D2SwinTransformer`.
        """
        super().__init__(**swin)
        for stage in self.out_indices:
            setattr(self, f"norm{stage}", nn.Identity())
        for part in (self.patch_embed, *self.layers)[:freeze_at]:
            part.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_drop_norms)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}


def _drop_norms(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: files of detectors with norms have them here, too."""
    for stage in range(len(FEATURES)):
        for name in ("weight", "bias"):
            state_dict.pop(f"{prefix}norm{stage}.{name}", None)
