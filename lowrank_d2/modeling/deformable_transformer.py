"""Layers of deformable transformers (Zhu et al. 2021), post-norm: the encoder's and, with box references, the decoder's."""
from typing import Optional, Sequence

from torch import Tensor, nn

from lowrank_d2.layers.attention import DeformableAttention, SelfAttention
from lowrank_d2.layers.mlp import FeedForward


class EncoderLayer(nn.Module):
    """Every cell of every level reads the levels around itself, then passes through the feed-forward part."""

    def __init__(
        self,
        *,
        embed_dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = DeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, dropout=dropout
        )
        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=feedforward_dim, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """
        Args:
            x: (N, S, embed_dim), the levels end to end; `shapes` are their sizes (H, W).
            pos: (N or 1, S, embed_dim).
            reference: (1, S, 2), the cells' centres as fractions.
            padding: (N, S) bool or None.

        Returns:
            (N, S, embed_dim)
        """
        return self.ffn(self.self_attn(x, pos, reference, x, shapes, padding))


class DecoderLayer(nn.Module):
    """Queries see each other, read the memory around their boxes, then pass through the feed-forward part."""

    def __init__(
        self,
        *,
        embed_dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = SelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.cross_attn = DeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, dropout=dropout
        )
        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=feedforward_dim, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        blocked: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """
        Args:
            x, pos: (N, Q, embed_dim), the queries and the encoding of their boxes.
            reference: (N, Q, 4) boxes cxcywh in [0, 1].
            memory: (N, S, embed_dim); `shapes` are the sizes (H, W) of its levels.
            blocked: (Q, Q) bool, True where a query (row) must not see another (column).
            padding: (N, S) bool or None.

        Returns:
            (N, Q, embed_dim)
        """
        x = self.self_attn(x, pos, blocked)
        x = self.cross_attn(x, pos, reference, memory, shapes, padding)
        return self.ffn(x)
