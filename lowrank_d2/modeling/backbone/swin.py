"""Swin Transformer (https://arxiv.org/abs/2103.14030) under the names that Mask DINO configs use."""
from typing import Any, Callable, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SwinTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_d2.errors import ConfigError

FEATURES = ("res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """Detectron2's Swin with outputs res2 .. res5 at strides 4 .. 32."""

    @configurable
    def __init__(self, *, out_features: Sequence[str], drop_path_rate: float, **swin: Any):
        """
        Args:
            out_features: of res2, res3, res4, res5.
            drop_path_rate: of the last block; it grows from 0 linearly.
            swin: the other arguments of SwinTransformer.
        """
        unknown = set(out_features) - set(FEATURES)
        if unknown:
            raise ConfigError(
                f"MODEL.SWIN.OUT_FEATURES names {sorted(unknown)}, which Swin does not have. Choose of {list(FEATURES)}."
            )
        # Only these outputs have a norm: one that nothing reads would be a parameter without gradient.
        indices = tuple(i for i, name in enumerate(FEATURES) if name in out_features)
        # Detectron2's class takes DropPath from timm, which it does not install, but only for a rate above 0.
        with _LinspaceOnCpu():
            super().__init__(drop_path_rate=0.0, out_indices=indices, **swin)
        blocks = [block for layer in self.layers for block in layer.blocks]
        for i, block in enumerate(blocks):
            block.drop_path = DropPath(drop_path_rate * i / max(len(blocks) - 1, 1))
        self._names = {f"p{i}": FEATURES[i] for i in self.out_indices}
        self._out_features = list(out_features)
        self._out_feature_channels = self._renamed(self._out_feature_channels)
        self._out_feature_strides = self._renamed(self._out_feature_strides)
        self.register_load_state_dict_pre_hook(_drop_unread_norms)

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


class DropPath(nn.Module):
    """Leaves out a residual branch of an image with the given probability, in training (stochastic depth)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape; what stays is scaled up, so that the mean is kept."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"{self.rate:.3f}"


def _drop_unread_norms(model: D2SwinTransformer, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: the original's checkpoints have a norm of every output, here are those of `out_features` alone."""
    for i in set(range(len(FEATURES))).difference(model.out_indices):
        for name in ("weight", "bias"):
            state_dict.pop(f"{prefix}norm{i}.{name}", None)


class _LinspaceOnCpu(TorchFunctionMode):
    """Lets Detectron2's constructor read its drop path rates, which it makes as a tensor, on the meta device too."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "cpu"} if func is torch.linspace else kwargs))
