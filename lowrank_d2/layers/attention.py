"""Attention blocks: attention, dropout, residual stream and norm in one module, with a place for an adapter.

Every projection is a Linear of its own, so that a low-rank method can take the ones it wants.
"""
import math
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.dropout import Dropout
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.ms_deform_attn import ms_deform_attn_from_offsets


class AttentionBlock(nn.Module):
    """What all blocks share: norm(stream + attended), or norm(stream + adapter(attended, stream)).

    Attributes:
        embed_dim: width of the residual stream.
        adapter: None, or a module that takes the attention output (after its dropout) and the residual stream.
    """

    def __init__(self, *, embed_dim: int, dropout: float = 0.0):
        super().__init__()
        self.embed_dim = embed_dim
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.register_module("adapter", None)

    def join(self, stream: Tensor, attended: Tensor) -> Tensor:
        """(N, Q, embed_dim) both -> the block's output, of the same shape."""
        attended = self.dropout(attended)
        if self.adapter is not None:
            attended = self.adapter(attended, stream)
        return self.norm(stream + attended)


class SelfAttention(AttentionBlock):
    """Multi-head self-attention whose queries and keys carry a position encoding."""

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0, weight_dropout: float = 0.0):
        """
        Args:
            dropout: of the output, before the residual stream takes it up.
            weight_dropout: of the attention weights.
        """
        super().__init__(embed_dim=embed_dim, dropout=dropout)
        self.num_heads = num_heads
        self.weight_dropout = weight_dropout
        self.q_proj = Linear(embed_dim, embed_dim)
        self.k_proj = Linear(embed_dim, embed_dim)
        self.v_proj = Linear(embed_dim, embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier; q, k and v as one matrix of 3 embed_dim rows, which is how upstream starts."""
        bound = math.sqrt(6 / (4 * self.embed_dim))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Tensor, pos: Tensor, blocked: Optional[Tensor] = None, bias: Optional[Tensor] = None
    ) -> Tensor:
        """
        Args:
            x, pos: (N, Q, embed_dim).
            blocked: (Q, Q) bool, True where a query (row) must not see another (column).
            bias: (N, num_heads, Q, Q), added to the logits.

        Returns:
            (N, Q, embed_dim)
        """
        with_pos = x + pos
        q, k, v = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.q_proj(with_pos), self.k_proj(with_pos), self.v_proj(x))
        )
        mask = None if blocked is None else ~blocked
        if bias is not None:
            mask = bias if blocked is None else bias.masked_fill(blocked, -torch.inf)
        dropout = self.weight_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.join(x, self.out_proj(attended.transpose(1, 2).flatten(2)))


class DeformableAttention(AttentionBlock):
    """Multi-scale deformable attention: each query reads `num_points` places per head and level, near its reference."""

    def __init__(self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0):
        super().__init__(embed_dim=embed_dim, dropout=dropout)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        places = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(embed_dim, 2 * places)
        self.attention_weights = Linear(embed_dim, places)
        self.value_proj = Linear(embed_dim, embed_dim)
        self.output_proj = Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h starts looking in direction h of the circle, point p at distance p + 1 cells, with equal weights."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * distance[:, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """
        Args:
            x, pos: (N, Q, embed_dim); pos may have N = 1.
            reference: (N or 1, Q, 2) points or (N, Q, 4) boxes cxcywh, fractions, the same for all levels.
            memory: (N, S, embed_dim), what is read.
            shapes: sizes (H, W) of the levels of `memory`.
            padding: (N, S) bool, True where `memory` is padding, which then reads 0.

        Returns:
            (N, Q, embed_dim)
        """
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        query = x + pos
        per_place = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*per_place, 2))
        logits = self.attention_weights(query).unflatten(-1, per_place)
        attended = ms_deform_attn_from_offsets(
            value.unflatten(-1, (self.num_heads, -1)), shapes, reference, offsets, logits
        )
        return self.join(x, self.output_proj(attended))
