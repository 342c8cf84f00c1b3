"""Sampling of features in three dimensions: a place in the image, and a scale between the levels of the pyramid."""
import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn

from lors.boxes import box_sizes
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.ms_deform_attn import ms_deform_attn


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of N images as all stages read them.

    Attributes:
        value: (N, S, C), the maps flattened row by row and laid end to end.
        shapes: sizes (H, W) of the maps.
        strides: pixels per cell of each map.
    """

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, maps: Sequence[Tensor], strides: Sequence[int]) -> "Pyramid":
        """Of maps (N, C, H, W)."""
        value = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        return cls(value, tuple(tuple(x.shape[-2:]) for x in maps), tuple(strides))


class PointSampling(nn.Module):
    """Reads `points` places for each query and sampling group; group g reads its own slice of the channels."""

    def __init__(self, *, embed_dim: int, groups: int, points: int):
        super().__init__()
        self.groups, self.points = groups, points
        self.offsets = Linear(embed_dim, groups * points * 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All queries look at the same places of their boxes, one octave below the box's scale.

        Points whose number is a square stand in the cells of a grid, the first offset growing slowest; others are
        drawn.
        """
        nn.init.zeros_(self.offsets.weight)
        bias = torch.empty(self.groups, self.points, 3)
        side = math.isqrt(self.points)
        if side * side == self.points:
            centers = (torch.arange(side) + 0.5) / side - 0.5
            bias[..., :2] = torch.cartesian_prod(centers, centers).view(-1, 2)
        else:
            nn.init.uniform_(bias[..., :2], -0.5, 0.5)
        bias[..., 2] = -1.0
        with torch.no_grad():
            self.offsets.bias.copy_(bias.flatten())

    def forward(self, content: Tensor, xyzr: Tensor, pyramid: Pyramid) -> Tensor:
        """
        Args:
            content: (N, Q, embed_dim).
            xyzr: (N, Q, 4).

        Returns:
            (N, Q, points, groups, embed_dim / groups)
        """
        offsets = self.offsets(content).unflatten(-1, (self.groups, self.points, 3))
        places = sample_places(xyzr, offsets.to(xyzr.dtype))  # under autocast boxes stay exact
        # To the operator each point is a query of its own with one point on every level: nothing is summed over points.
        points = places.transpose(2, 3).flatten(1, 2)  # (N, Q * points, groups, 3)
        levels = zip(pyramid.shapes, pyramid.strides)
        extents = [(width * stride, height * stride) for (height, width), stride in levels]
        locations = points[..., None, :2] / points.new_tensor(extents)
        weights = level_weights(points[..., 2], pyramid.strides)
        value = pyramid.value.unflatten(-1, (self.groups, -1))
        sampled = ms_deform_attn(value, pyramid.shapes, locations.unsqueeze(-2), weights.unsqueeze(-1))
        return sampled.unflatten(1, (-1, self.points)).unflatten(-1, (self.groups, -1))


def sample_places(xyzr: Tensor, offsets: Tensor) -> Tensor:
    """Where to look, from boxes (N, Q, 4) and offsets (dx, dy, dz) (N, Q, G, P, 3): (x, y) in pixels and z.

    dx and dy are fractions of the box's width and height from its centre, dz is added to its z.
    """
    xyzr = xyzr[:, :, None, None]
    position = xyzr[..., :2] + offsets[..., :2] * box_sizes(xyzr)
    return torch.cat((position, xyzr[..., 2:3] + offsets[..., 2:]), dim=-1)


def level_weights(z: Tensor, strides: Sequence[int]) -> Tensor:
    """How much each level counts at scale z: (...) -> (..., levels), a softmax of squared distances in octaves."""
    distance = z[..., None] - z.new_tensor([math.log2(stride) for stride in strides])
    return (-distance.square() / 2).softmax(-1)
