"""Swin Transformer (https://arxiv.org/abs/2103.14030) under the name, keys and output names that Mask DINO configs use."""
from typing import Sequence

from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, SwinTransformer
from detectron2.layers import ShapeSpec
from torch import Tensor

from lowrank_d2.errors import ConfigError


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """Detectron2's Swin with outputs res2 .. res5 at strides 4 .. 32."""

    @configurable
    def __init__(self, *, out_features: Sequence[str], **swin: object):
        """
        Args:
            out_features: of res2, res3, res4, res5.
            swin: arguments of SwinTransformer.
        """
        super().__init__(**swin)
        self._names = {f"p{i}": f"res{i + 2}" for i in self.out_indices}
        unknown = set(out_features) - set(self._names.values())
        if unknown:
            raise ConfigError(
                f"MODEL.SWIN.OUT_FEATURES names {sorted(unknown)}, which Swin does not have. Choose of "
                f"{list(self._names.values())}."
            )
        self._out_features = list(out_features)
        self._out_feature_channels = self._renamed(self._out_feature_channels)
        self._out_feature_strides = self._renamed(self._out_feature_strides)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.SWIN
        return {
            "out_features": node.OUT_FEATURES,
            "pretrain_img_size": node.PRETRAIN_IMG_SIZE,
            "patch_size": node.PATCH_SIZE,
            "in_chans": input_shape.channels,
            "embed_dim": node.EMBED_DIM,
            "depths": node.DEPTHS,
            "num_heads": node.NUM_HEADS,
            "window_size": node.WINDOW_SIZE,
            "mlp_ratio": node.MLP_RATIO,
            "qkv_bias": node.QKV_BIAS,
            "qk_scale": node.QK_SCALE,
            "drop_rate": node.DROP_RATE,
            "attn_drop_rate": node.ATTN_DROP_RATE,
            "drop_path_rate": node.DROP_PATH_RATE,
            "ape": node.APE,
            "patch_norm": node.PATCH_NORM,
            "use_checkpoint": node.USE_CHECKPOINT,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> {name: (N, C, H / stride, W / stride)}."""
        return self._renamed(super().forward(x))

    def _renamed(self, values: dict) -> dict:
        return {self._names[name]: value for name, value in values.items() if self._names[name] in self._out_features}
