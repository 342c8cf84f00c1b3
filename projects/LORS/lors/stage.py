"""One stage of AdaMixer's decoder (arXiv:2203.16507): queries attend to each other, sample, mix and refine boxes."""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors import boxes
from lors.mixing import AdaptiveMixing
from lors.sampling import PointSampling, Pyramid
from lowrank_d2.layers.attention import AttentionBlock
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.mlp import FeedForward

PRIOR = 0.01  # probability of every class at the start


@dataclass(frozen=True)
class StageOutput:
    """What a stage says of N images with Q queries each.

    Attributes:
        content: (N, Q, embed_dim), for the next stage.
        logits: (N, Q, classes).
        xyzr: (N, Q, 4), the refined boxes.
        boxes: (N, Q, 4), the same as corners in pixels.
    """

    content: Tensor
    logits: Tensor
    xyzr: Tensor
    boxes: Tensor


class CoveredAttention(AttentionBlock):
    """Self-attention of the queries, drawn to those that cover them.

    The position code belongs to the residual stream: it stays in the content, as in the authors' code.

    Attributes:
        tau: (num_heads,), how strongly each head looks at what covers a query.
        qkv: the three projections in one, in this order.
    """

    def __init__(self, *, embed_dim: int, num_heads: int):
        super().__init__(embed_dim=embed_dim)
        self.num_heads = num_heads
        self.tau = nn.Parameter(torch.empty(num_heads))
        self.qkv = Linear(embed_dim, 3 * embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for the matrices; the bias of `out_proj` keeps torch's of a Linear, as in the authors' code."""
        nn.init.uniform_(self.tau, 0, 4)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(self, content: Tensor, code: Tensor, corners: Tensor) -> Tensor:
        """
        Args:
            content, code: (N, Q, embed_dim), the queries and the code of their positions.
            corners: (N, Q, 4), their boxes.

        Returns:
            (N, Q, embed_dim)
        """
        stream = content + code
        q, k, v = self.qkv(stream).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(corners).to(q.dtype))
        return self.join(stream, self.out_proj(attended.transpose(1, 2).flatten(2)))

    def bias(self, corners: Tensor) -> Tensor:
        """What is added to the logits: (N, Q, 4) -> (N, num_heads, Q, Q)."""
        return self.tau[:, None, None] * boxes.log_covered(corners)[:, None]


class Heads(nn.Module):
    """Classes, and changes of the boxes, of the queries; each through one hidden layer."""

    def __init__(self, *, embed_dim: int, num_classes: int):
        super().__init__()
        self.class_hidden, self.box_hidden = _hidden(embed_dim), _hidden(embed_dim)
        self.class_embed = Linear(embed_dim, num_classes)
        self.box_embed = Linear(embed_dim, 4)
        nn.init.xavier_uniform_(self.class_embed.weight)
        nn.init.constant_(self.class_embed.bias, math.log(PRIOR / (1 - PRIOR)))
        nn.init.zeros_(self.box_embed.weight)
        nn.init.zeros_(self.box_embed.bias)

    def forward(self, content: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Q, embed_dim) -> logits (N, Q, classes) and changes of xyzr (N, Q, 4)."""
        return self.class_embed(self.class_hidden(content)), self.box_embed(self.box_hidden(content))


class Stage(nn.Module):
    """Attention, sampling, mixing, feed-forward layer and heads."""

    def __init__(
        self,
        *,
        attention: CoveredAttention,
        sampling: PointSampling,
        mixing: AdaptiveMixing,
        ffn: FeedForward,
        heads: Heads,
    ):
        super().__init__()
        self.attention = attention
        self.sampling = sampling
        self.mixing = mixing
        self.ffn = ffn
        self.heads = heads

    def forward(self, content: Tensor, xyzr: Tensor, pyramid: Pyramid) -> StageOutput:
        """Content (N, Q, embed_dim) and boxes (N, Q, 4) -> what the next stage takes, and the predictions."""
        content = self.attention(content, boxes.encode(xyzr, content.shape[-1]), boxes.to_corners(xyzr))
        samples = self.sampling(content, xyzr, pyramid)
        content = self.ffn(self.mixing(content, samples))
        logits, change = self.heads(content)
        refined = boxes.refine(xyzr, change.to(xyzr.dtype))
        return StageOutput(content, logits, refined, boxes.to_corners(refined))


def _hidden(embed_dim: int) -> nn.Sequential:
    hidden = nn.Sequential(Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim), nn.ReLU(inplace=True))
    nn.init.xavier_uniform_(hidden[0].weight)
    return hidden
