"""Adaptive mixing: kernels generated from a query mix the channels, then the points of what it has sampled.

With LORS the Linears that generate the kernels, and the weight of the output projection, are shared by all stages, and
each stage has low-rank parts of its own. Three things are called groups: sampling groups (here `groups`), the groups of
low-rank factors (`Residual.groups`, the paper's K), and those of the neck's GroupNorm.
"""
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.low_rank import GeneratedKernel, LowRankResidualKernel, LowRankResidualLinear, SharedLinear


@dataclass(frozen=True)
class MixingSize:
    """The sizes of the mixing; `groups` share embed_dim channels.

    Attributes:
        in_points: sampled points of a query and group.
        out_points: points after the spatial mixing.
    """

    embed_dim: int
    groups: int
    in_points: int
    out_points: int

    @property
    def channels(self) -> int:
        """Of a group."""
        return self.embed_dim // self.groups

    @property
    def channel_numbers(self) -> int:
        """Numbers that a channel kernel consists of."""
        return self.channels**2

    @property
    def spatial_numbers(self) -> int:
        """Numbers that a spatial kernel consists of."""
        return self.in_points * self.out_points

    @property
    def mixed(self) -> int:
        """Numbers of a query that enter the output projection."""
        return self.groups * self.out_points * self.channels


@dataclass(frozen=True)
class Residual:
    """A private part of LORS.

    Attributes:
        rank: the paper's r.
        groups: the paper's K of every stage.
    """

    rank: int
    groups: tuple[int, ...]


class SharedMixing(nn.Module):
    """What the stages of a LORS decoder share; Kaiming initialisation, torch's for Linear."""

    def __init__(self, size: MixingSize, *, adaptive: bool, static: bool):
        super().__init__()
        self.channel = self.spatial = self.out_proj = None
        if adaptive:
            self.channel = nn.ModuleList(SharedLinear(size.embed_dim, size.channel_numbers) for _ in range(size.groups))
            self.spatial = nn.ModuleList(SharedLinear(size.embed_dim, size.spatial_numbers) for _ in range(size.groups))
        if static:
            self.out_proj = SharedLinear(size.mixed, size.embed_dim, bias=False)


class AdaptiveMixing(nn.Module):
    """norm(content + projection of the mixed samples).

    Attributes:
        channel, spatial: for every sampling group what multiplies the samples from the right and from the left.
        out_proj: from the mixed samples of all groups, flattened as (groups, out_points, channels), to embed_dim.
    """

    def __init__(
        self,
        size: MixingSize,
        stage: int = 0,
        *,
        shared: Optional[SharedMixing] = None,
        adaptive: Optional[Residual] = None,
        static: Optional[Residual] = None,
    ):
        """
        Args:
            stage: whose place in the residuals' groups this is.
            shared: what the residuals stand beside.
            adaptive, static: private parts of the kernels and of the projection; None: this stage owns the whole.
        """
        super().__init__()
        kinds = ((size.channels, size.channels), False), ((size.in_points, size.out_points), True)
        if adaptive is None:
            self.channel, self.spatial = (
                nn.ModuleList(_own_kernel(size.embed_dim, shape, left) for _ in range(size.groups))
                for shape, left in kinds
            )
        else:
            rank, k = adaptive.rank, adaptive.groups[stage]
            self.channel, self.spatial = (
                nn.ModuleList(LowRankResidualKernel(linear, rank, k, shape=shape, left=left) for linear in linears)
                for linears, (shape, left) in zip((shared.channel, shared.spatial), kinds)
            )
        self.activation = NormedReLU()
        if static is None:
            self.out_proj = Linear(size.mixed, size.embed_dim)
            nn.init.xavier_uniform_(self.out_proj.weight)
        else:
            self.out_proj = LowRankResidualLinear(shared.out_proj, static.rank, static.groups[stage])
        self.norm = nn.LayerNorm(size.embed_dim)

    def forward(self, content: Tensor, samples: Tensor) -> Tensor:
        """
        Args:
            content: (N, Q, embed_dim), the queries.
            samples: (N, Q, in_points, groups, channels).

        Returns:
            (N, Q, embed_dim)
        """
        groups = []
        for mix_channels, mix_points, x in zip(self.channel, self.spatial, samples.unbind(3)):
            x = self.activation(mix_channels(x, content))
            groups.append(self.activation(mix_points(x, content)))  # (N, Q, out_points, channels)
        mixed = torch.cat([x.flatten(2) for x in groups], dim=-1)
        return self.norm(content + self.out_proj(mixed))


class NormedReLU(nn.Module):
    """ReLU of what is normalised over its last two dimensions together, without scale and shift."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., points, channels) -> the same shape."""
        return F.relu(F.layer_norm(x, x.shape[-2:]))


def _own_kernel(embed_dim: int, shape: tuple[int, int], left: bool) -> GeneratedKernel:
    """AdaMixer's: at the start the same kernel for every query, since only the bias is not zero."""
    generator = Linear(embed_dim, shape[0] * shape[1])
    nn.init.zeros_(generator.weight)
    return GeneratedKernel(generator, shape, left=left)
