"""Mask DINO's pixel decoder: a deformable encoder over the coarse levels and mask features at stride 4."""
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

from lowrank_d2.layers.position_encoding import cell_centers, encode_cells
from lowrank_d2.modeling.deformable_transformer import EncoderLayer

FEATURE_ORDERS = ("low2high", "high2low")


@dataclass(frozen=True)
class PixelFeatures:
    """What the pixel decoder hands on.

    Attributes:
        mask_features: (N, mask_dim, H/4, W/4) of the canvas.
        memory: the encoder's levels (N, D, h, w) in the encoder's order.
        padding: per level (N, h, w) bool, True on padding; None where padding is treated as image.
    """

    mask_features: Tensor
    memory: tuple[Tensor, ...]
    padding: Optional[tuple[Tensor, ...]] = None


class MaskDINOPixelDecoder(nn.Module):
    """Projects the backbone's maps, mixes them by a deformable encoder, and merges the finest with stride 4."""

    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        encoder_features: Sequence[str],
        embed_dim: int,
        mask_dim: int,
        norm: str,
        num_layers: int,
        num_levels: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        feature_order: str,
        common_stride: int = 4,
        aligned_encodings: bool = False,
    ):
        """
        Args:
            input_shape: channels and strides of the backbone's maps.
            encoder_features: names of the maps that the encoder reads.
            embed_dim: width of the encoder and of the feature pyramid.
            mask_dim: channels of the mask features.
            norm: norm of the convolutions of the feature pyramid, "" for none.
            num_levels: levels of the encoder; those beyond `encoder_features` are made by strided convolutions.
            feature_order: "low2high" (finest level first) or "high2low".
            common_stride: stride of the mask features.
            aligned_encodings: True gives each of several extra levels its own position encoding; False exchanges
                them, as upstream (quirk Q9).
        """
        super().__init__()

        def stride(name: str) -> int:
            return input_shape[name].stride

        finest_first = sorted(encoder_features, key=stride)
        self.in_features = tuple(finest_first[::-1])
        if feature_order == "low2high":  # maps of one stride, of a dilated backbone, keep the other order's, as upstream
            self.in_features = tuple(sorted(self.in_features, key=stride))
        self.feature_order = feature_order
        self.aligned_encodings = aligned_encodings
        coarsest = finest_first[-1]
        extra = num_levels - len(finest_first)
        channels = [input_shape[name].channels for name in self.in_features]
        extra_channels = ([input_shape[coarsest].channels] + [embed_dim] * extra)[:extra]
        self.coarsest = coarsest
        self.input_proj = nn.ModuleList(
            [_projection(c, embed_dim, kernel_size=1) for c in channels]
            + [_projection(c, embed_dim, kernel_size=3, stride=2, padding=1) for c in extra_channels]
        )
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim).normal_())
        self.encoder = nn.ModuleList(
            EncoderLayer(
                embed_dim=embed_dim,
                feedforward_dim=feedforward_dim,
                num_heads=num_heads,
                num_levels=num_levels,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        by_stride = sorted(input_shape, key=stride)
        steps = (stride(finest_first[0]) // common_stride).bit_length() - 1
        self.fine_features = tuple(by_stride[: max(steps, 1)])  # finest first
        self.lateral = nn.ModuleList(
            _pyramid_conv(input_shape[name].channels, embed_dim, norm, kernel_size=1) for name in self.fine_features
        )
        self.output = nn.ModuleList(
            _pyramid_conv(embed_dim, embed_dim, norm, kernel_size=3, padding=1, activation=F.relu)
            for _ in self.fine_features
        )
        self.mask_features = Conv2d(embed_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def forward(self, features: Mapping[str, Tensor], valid: Optional[Tensor] = None) -> PixelFeatures:
        """
        Args:
            features: the backbone's maps (N, C, H / stride, W / stride). Computed in float32 also under autocast.
            valid: (N, 2), the unpadded share of the canvas (rows, columns) of each image; None treats padding as image.
        """
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            features = {name: x.float() for name, x in features.items()}
            maps, encodings, padding = self._levels(features, valid)
            memory = self._encode(maps, encodings, padding)
            return PixelFeatures(self._mask_features(features, memory), memory, padding)

    def _levels(
        self, features: Mapping[str, Tensor], valid: Optional[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Optional[tuple[Tensor, ...]]]:
        """The encoder's maps (N, D, h, w) in its order, their position encodings (N or 1, h * w, D), their padding."""
        projections = iter(self.input_proj)
        maps = [project(features[name]) for name, project in zip(self.in_features, projections)]
        extras: list[Tensor] = []
        for project in projections:
            extras.append(project(extras[-1] if extras else features[self.coarsest]))

        def encode(x: Tensor) -> Tensor:
            return encode_cells(x.shape[-2:], x.shape[1], valid=_valid_cells(x, valid), like=x)

        encodings = [encode(x) for x in maps]
        extra_encodings = [encode(x) for x in extras]
        if self.aligned_encodings:
            extra_encodings.reverse()
        extras.reverse()
        if self.feature_order == "low2high":
            maps, encodings = maps + extras, encodings + extra_encodings
        else:
            maps, encodings = extras + maps, extra_encodings + encodings
        padding = None if valid is None else tuple(_padding(x, valid) for x in maps)
        return maps, encodings, padding

    def _encode(
        self, maps: Sequence[Tensor], encodings: Sequence[Tensor], padding: Optional[Sequence[Tensor]]
    ) -> tuple[Tensor, ...]:
        shapes = [tuple(x.shape[-2:]) for x in maps]
        areas = [h * w for h, w in shapes]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        pos = torch.cat([encoding + level for encoding, level in zip(encodings, self.level_embed)], dim=1)
        reference = cell_centers(shapes, like=x)[None]
        flat_padding = None if padding is None else torch.cat([p.flatten(1) for p in padding], dim=1)
        for layer in self.encoder:
            x = layer(x, pos, reference, shapes, flat_padding)
        return tuple(
            level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(x.split(areas, dim=1), shapes)
        )

    def _mask_features(self, features: Mapping[str, Tensor], memory: Sequence[Tensor]) -> Tensor:
        """Adds the finest encoder level to the backbone's finer maps.

        With several finer maps high2low goes from coarse to fine; low2high starts from the encoder each time, so that
        only the finest map counts, as upstream.
        """
        x = None
        for name, lateral, output in reversed(list(zip(self.fine_features, self.lateral, self.output))):
            fine = lateral(features[name])
            if self.feature_order == "low2high" or x is None:
                x = memory[0 if self.feature_order == "low2high" else -1]
            x = output(fine + F.interpolate(x, size=fine.shape[-2:], mode="bilinear", align_corners=False))
        return self.mask_features(x)


def _projection(in_channels: int, embed_dim: int, **conv: int) -> nn.Sequential:
    projection = nn.Sequential(nn.Conv2d(in_channels, embed_dim, **conv), nn.GroupNorm(32, embed_dim))
    nn.init.xavier_uniform_(projection[0].weight)
    nn.init.zeros_(projection[0].bias)
    return projection


def _pyramid_conv(in_channels: int, embed_dim: int, norm: str, **conv: object) -> Conv2d:
    layer = Conv2d(in_channels, embed_dim, bias=norm == "", norm=get_norm(norm, embed_dim), **conv)
    weight_init.c2_xavier_fill(layer)
    return layer


def _valid_cells(x: Tensor, valid: Optional[Tensor]) -> Optional[Tensor]:
    """(N, 2): how many rows and columns of the map `x` (N, C, h, w) show image; a cell partly image counts as image."""
    if valid is None:
        return None
    size = valid.new_tensor(x.shape[-2:])
    return (valid * size - 1e-4).ceil().clamp(min=1)


def _padding(x: Tensor, valid: Tensor) -> Tensor:
    """(N, h, w) bool, True on the padding of the map `x`."""
    rows, columns = _valid_cells(x, valid).unbind(1)
    y = torch.arange(x.shape[-2], device=x.device)
    column = torch.arange(x.shape[-1], device=x.device)
    return (y >= rows[:, None])[:, :, None] | (column >= columns[:, None])[:, None]
