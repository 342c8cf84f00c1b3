"""From the backbone's maps to the encoder's tokens: projections, padding, positions."""
from dataclasses import dataclass
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.position_encoding import encode_unpadded


@dataclass(frozen=True)
class Levels:
    """Feature maps of N images, flattened row by row and laid end to end: S tokens.

    Attributes:
        tokens: (N, S, D).
        pos: (N, S, D), position and level.
        padding: (N, S) bool, True on padding.
        shapes: sizes (H, W) of the levels.
        valid: (N, L, 2), the share (x, y) of each level that is not padding.
        centers: (N, S, 2), the cells' centres (x, y) as fractions of the unpadded part.
    """

    tokens: Tensor
    pos: Tensor
    padding: Tensor
    shapes: tuple[tuple[int, int], ...]
    valid: Tensor
    centers: Tensor

    def on_levels(self, reference: Tensor) -> Tensor:
        """Boxes (N, Q, 4) or points (N, Q, 2), fractions of the unpadded part -> of every level: (N, Q, L, 4 or 2)."""
        return reference[:, :, None] * self.valid.repeat(1, 1, reference.shape[-1] // 2)[:, None]


class Neck(nn.Module):
    """Projects the backbone's maps to one width and makes coarser levels from the last one."""

    def __init__(self, *, in_channels: Sequence[int], embed_dim: int, num_levels: int, bias: bool = True):
        """
        Args:
            in_channels: of the maps, finest first.
            num_levels: of the result; those beyond `in_channels` are made by strided convolutions.
            bias: of the convolutions.
        """
        super().__init__()
        self.projections = nn.ModuleList(
            _projection(channels, embed_dim, kernel_size=1, bias=bias) for channels in in_channels
        )
        channels = in_channels[-1]
        for _ in range(num_levels - len(in_channels)):
            self.projections.append(_projection(channels, embed_dim, kernel_size=3, stride=2, padding=1, bias=bias))
            channels = embed_dim
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim).normal_())

    def forward(self, maps: Sequence[Tensor], padding: Tensor) -> Levels:
        """
        Args:
            maps: (N, C, H / stride, W / stride) each, finest first.
            padding: (N, H, W) bool, True on the padding of the images.
        """
        projected = [project(x) for project, x in zip(self.projections, maps)]
        x = maps[-1]
        for project in self.projections[len(maps) :]:
            x = project(x)
            projected.append(x)
        masks = [F.interpolate(padding[None].float(), size=x.shape[-2:])[0].bool() for x in projected]
        valid = torch.stack([_valid_cells(mask) for mask in masks], dim=1)
        sizes = torch.tensor([mask.shape[:0:-1] for mask in masks], device=valid.device)
        encodings = [
            encode_unpadded(mask, x.shape[1]).to(x.dtype) + level
            for mask, x, level in zip(masks, projected, self.level_embed)
        ]
        return Levels(
            tokens=torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1),
            pos=torch.cat(encodings, dim=1),
            padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            shapes=tuple(tuple(x.shape[-2:]) for x in projected),
            valid=valid / sizes,
            centers=torch.cat([_centers(mask, cells) for mask, cells in zip(masks, valid.unbind(1))], dim=1),
        )


def _projection(in_channels: int, embed_dim: int, **conv: int) -> nn.Sequential:
    projection = nn.Sequential(nn.Conv2d(in_channels, embed_dim, **conv), nn.GroupNorm(32, embed_dim))
    nn.init.xavier_uniform_(projection[0].weight)
    if projection[0].bias is not None:
        nn.init.zeros_(projection[0].bias)
    return projection


def _valid_cells(mask: Tensor) -> Tensor:
    """(N, H, W) -> (N, 2): how many columns and rows of each image are not padding."""
    return torch.stack(((~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)), dim=-1).float()


def _centers(mask: Tensor, cells: Tensor) -> Tensor:
    """The cells' centres (x, y) in units of the unpadded columns and rows `cells` (N, 2): (N, H * W, 2)."""
    height, width = mask.shape[1:]
    x = (torch.arange(width, device=mask.device) + 0.5) / cells[:, :1]
    y = (torch.arange(height, device=mask.device) + 0.5) / cells[:, 1:]
    return torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1).flatten(1, 2)
