"""Layers of deformable transformers (Zhu et al. 2021), post-norm: the encoder's and, with box references, the decoder's."""
from typing import Optional, Sequence

from torch import Tensor, nn

from lowrank_d2.layers.attention import DeformableAttention, SelfAttention
from lowrank_d2.layers.branches import LowRankBranches
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
            reference: (1 or N, S, 2), the cells' centres as fractions, or (N, S, L, 2) where they differ by level.
            padding: (N, S) bool or None.

        Returns:
            (N, S, embed_dim)
        """
        return self.ffn(self.self_attn(x, pos, reference, x, shapes, padding))


class DecoderLayer(nn.Module):
    """Queries see each other, read the memory around their boxes, then pass through the feed-forward part.

    Attributes:
        branches: None, or a module of `layers.branches` that computes further outputs, for supervision in training.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int = 4,
        dropout: float = 0.0,
        cross_first: bool = False,
        branches: Optional[nn.Module] = None,
    ):
        """
        Args:
            dropout: of both attentions' outputs and weights, and of the feed-forward part.
            cross_first: queries read the memory, from which the branches go off, before they see each other (MS-DETR).
        """
        super().__init__()
        self.cross_first = cross_first
        self.self_attn = SelfAttention(
            embed_dim=embed_dim, num_heads=num_heads, dropout=dropout, weight_dropout=dropout
        )
        self.cross_attn = DeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, dropout=dropout
        )
        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=feedforward_dim, dropout=dropout)
        self.register_module("branches", branches)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        blocked: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
    ) -> Tensor:
        """
        Args:
            x, pos: (N, Q, embed_dim), the queries and the encoding of their boxes.
            reference: (N, Q, 4) boxes cxcywh in [0, 1], or points (N, Q, 2); (N, Q, L, .) where they differ by level.
            memory: (N, S, embed_dim); `shapes` are the sizes (H, W) of its levels.
            blocked: (Q, Q) bool, True where a query (row) must not see another (column).
            padding: (N, S) bool or None.
            bias: (N, num_heads, Q, Q), added to the logits of the self-attention.

        Returns:
            (N, Q, embed_dim)
        """
        return self.ffn(self._attend(x, pos, reference, memory, shapes, blocked, padding, bias)[0])

    def with_branches(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        blocked: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
        first: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and what the branches make of the queries from the index `first` on.

        Returns:
            (N, Q, embed_dim) and (branches, N, Q - first, embed_dim)
        """
        attended, branched = self._attend(x, pos, reference, memory, shapes, blocked, padding, bias)
        if not isinstance(self.branches, LowRankBranches):
            return self.ffn(attended), self.branches(branched[:, first:])
        hidden = self.ffn.linear1(attended)
        out = self.ffn.contract(attended, hidden)
        if branched is not attended:
            hidden = self.ffn.linear1(branched)
        return out, self.branches(self.ffn, branched[:, first:], hidden[:, first:])

    def _attend(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        blocked: Optional[Tensor],
        padding: Optional[Tensor],
        bias: Optional[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """What enters the feed-forward part, and what enters the branches."""
        if self.cross_first:
            crossed = self.cross_attn(x, pos, reference, memory, shapes, padding)
            return self.self_attn(crossed, pos, blocked, bias), crossed
        x = self.self_attn(x, pos, blocked, bias)
        x = self.cross_attn(x, pos, reference, memory, shapes, padding)
        return x, x
