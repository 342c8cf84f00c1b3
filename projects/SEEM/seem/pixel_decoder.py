"""SEEM's pixel decoder: a transformer encoder at stride 32, then a feature pyramid up to the mask features at stride 4."""
from collections.abc import Mapping
from dataclasses import dataclass

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from lowrank_d2.layers.attention import SelfAttention
from lowrank_d2.layers.mlp import FeedForward
from lowrank_d2.layers.position_encoding import encode_cells
from seem.convolution import PyramidConv, relu_

NUM_LEVELS = 3  # that the decoder reads: strides 32, 16, 8


@dataclass(frozen=True)
class PixelFeatures:
    """What the pixel decoder hands on.

    Attributes:
        mask_features: (N, mask_dim, H/4, W/4) of the canvas.
        memory: the levels (N, embed_dim, h, w) of strides 32, 16, 8.
    """

    mask_features: Tensor
    memory: tuple[Tensor, ...]


class SEEMPixelDecoder(nn.Module):
    """Padding is treated as image, as in the original."""

    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        embed_dim: int,
        mask_dim: int,
        norm: str,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
    ):
        """
        Args:
            input_shape: channels and strides of the backbone's four maps.
            embed_dim: width of the encoder and the pyramid.
            norm: of the pyramid's convolutions, "" for none.
            num_layers, num_heads, feedforward_dim: of the transformer encoder.
        """
        super().__init__()
        self.in_features = tuple(sorted(input_shape, key=lambda name: input_shape[name].stride))  # finest first
        *finer, coarsest = (input_shape[name].channels for name in self.in_features)
        self.input_proj = nn.Conv2d(coarsest, embed_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.encoder = nn.ModuleList(
            EncoderLayer(embed_dim=embed_dim, num_heads=num_heads, feedforward_dim=feedforward_dim)
            for _ in range(num_layers)
        )
        self.lateral = nn.ModuleList(_pyramid_conv(channels, embed_dim, norm, kernel_size=1) for channels in finer)
        self.output = nn.ModuleList(
            _pyramid_conv(embed_dim, embed_dim, norm, kernel_size=3, padding=1, activation=relu_)
            for _ in self.in_features
        )
        self.mask_features = PyramidConv(embed_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """
        Args:
            features: the backbone's maps (N, C, H / stride, W / stride).
        """
        *finer, coarsest = (features[name] for name in self.in_features)
        x = self.output[-1](self.encode(self.input_proj(coarsest)))
        levels = [x]
        for fine, lateral, output in reversed(list(zip(finer, self.lateral, self.output))):
            x = output(_with_coarser(lateral(fine), x))
            levels.append(x)
        return PixelFeatures(self.mask_features(x), tuple(levels[:NUM_LEVELS]))

    def encode(self, x: Tensor) -> Tensor:
        """The transformer encoder on a map (N, embed_dim, h, w) -> the same shape."""
        pos = encode_cells(x.shape[-2:], x.shape[1], like=x)
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            tokens = layer(tokens, pos)
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class EncoderLayer(nn.Module):
    """Every cell sees every other one, then passes through the feed-forward part; both post-norm."""

    def __init__(self, *, embed_dim: int, num_heads: int, feedforward_dim: int):
        super().__init__()
        self.self_attn = SelfAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=feedforward_dim)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """(N, S, embed_dim), (1, S, embed_dim) -> (N, S, embed_dim)."""
        return self.ffn(self.self_attn(x, pos))


def _with_coarser(fine: Tensor, coarse: Tensor) -> Tensor:
    """`fine`, changed: what a norm gave, which no backward pass looks at. Nobody else holds it."""
    return fine.add_(F.interpolate(coarse, size=fine.shape[-2:], mode="nearest"))


def _pyramid_conv(in_channels: int, embed_dim: int, norm: str, **conv: object) -> PyramidConv:
    layer = PyramidConv(in_channels, embed_dim, bias=norm == "", norm=get_norm(norm, embed_dim), **conv)
    weight_init.c2_xavier_fill(layer)
    return layer
