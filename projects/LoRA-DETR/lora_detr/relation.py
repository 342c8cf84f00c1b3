"""Relation-DETR's queries and decoder (arXiv:2407.11699): what boxes are to each other steers the self-attention."""
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.encoder import Proposals, ProposalTokens, gather
from lora_detr.heads import Decoded, box_head, class_head, refine, stacked
from lora_detr.levels import Levels
from lowrank_d2.layers.mlp import MLP
from lowrank_d2.layers.position_encoding import encode_boxes, sine_features
from lowrank_d2.modeling.deformable_transformer import DecoderLayer

EPS = 1e-3  # of the inverse sigmoid, for noised boxes too
FEATURES = 16  # of each of the four numbers of a relation
SCALE = 100.0  # of these numbers before their sines


class ProposalHeads(nn.Module):
    """Heads that score tokens of the memory by their most probable class, and learned contents for the chosen ones."""

    def __init__(self, *, num_queries: int, embed_dim: int, num_labels: int):
        super().__init__()
        self.content = nn.Embedding(num_queries, embed_dim)
        self.class_head = class_head(embed_dim, num_labels)
        self.bbox_head = box_head(embed_dim)

    def choose(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared tokens (N, S, D) -> logits (N, S, C), and the tokens (N, Q) with the largest ones, best first."""
        logits = self.class_head(tokens)
        return logits, logits.amax(-1).topk(min(self.content.num_embeddings, logits.shape[1]), dim=1).indices

    def contents(self, chosen: Tensor) -> Tensor:
        """(N, Q, D)"""
        return self.content.weight[: chosen.shape[1]].expand(len(chosen), -1, -1)


class RelationQueries(ProposalHeads):
    """The decoder's queries: contents are learned, boxes are the best tokens'."""

    def __init__(self, *, num_queries: int, embed_dim: int, num_labels: int):
        super().__init__(num_queries=num_queries, embed_dim=embed_dim, num_labels=num_labels)
        self.tokens = ProposalTokens(embed_dim)

    def forward(self, memory: Tensor, levels: Levels) -> tuple[Proposals, Tensor, Tensor]:
        """The proposals of all tokens; the tokens (N, S, D) as the heads see them; their anchors before the sigmoid."""
        tokens, anchors = self.tokens(memory, levels)
        logits, chosen = self.choose(tokens)
        return Proposals(logits, self.bbox_head(tokens) + anchors, anchors.sigmoid(), chosen), tokens, anchors


class HybridQueries(ProposalHeads):
    """More queries, in training alone: they answer for objects that are repeated."""

    def forward(self, tokens: Tensor, anchors: Tensor) -> Proposals:
        """The proposals of the chosen ones of prepared tokens (N, S, D); `anchors` (N, S, 4) are before the sigmoid."""
        logits, chosen = self.choose(tokens)
        picked = gather(anchors, chosen)
        moved = self.bbox_head(gather(tokens, chosen)) + picked
        return Proposals(gather(logits, chosen), moved, picked.sigmoid(), chosen)


def box_relations(source: Tensor, target: Tensor) -> Tensor:
    """How far target boxes are from source boxes in units of these, and how much smaller, in logarithms.

    Args:
        source: (N, I, 4) cxcywh; target: (N, J, 4).

    Returns:
        (N, I, J, 4)
    """
    source, target = source[:, :, None], target[:, None]
    tiny = 1e-5
    distance = torch.log((source[..., :2] - target[..., :2]).abs() / (source[..., 2:] + tiny) + 1)
    return torch.cat((distance, torch.log((source[..., 2:] + tiny) / (target[..., 2:] + tiny))), dim=-1)


class PositionRelation(nn.Module):
    """A bias of the self-attention from the boxes of one layer and those of the next; boxes get no gradient from it."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.projection = nn.Conv2d(4 * FEATURES, num_heads, kernel_size=1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes (N, Q, 4) cxcywh both -> (N, heads, Q, Q)."""
        with torch.no_grad():
            features = sine_features(box_relations(source, target) * SCALE, FEATURES).flatten(-2)
        return F.relu(self.projection(features.permute(0, 3, 1, 2)))


class RelationDecoder(nn.Module):
    """Layers that refine boxes; a norm of their own stands before all heads."""

    def __init__(
        self,
        *,
        num_layers: int,
        embed_dim: int,
        num_labels: int,
        num_heads: int,
        make_layer: Callable[[], DecoderLayer],
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.ref_point_head = MLP(input_dim=2 * embed_dim, hidden_dim=embed_dim, output_dim=embed_dim, num_layers=2)
        self.query_scale = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=embed_dim, num_layers=2)
        self.position_relation = PositionRelation(num_heads)
        self.class_embed = nn.ModuleList(class_head(embed_dim, num_labels) for _ in range(num_layers))
        self.bbox_embed = nn.ModuleList(box_head(embed_dim) for _ in range(num_layers))

    def forward(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        *,
        blocked: Optional[Tensor] = None,
        relation: bool = True,
        branches_from: Optional[int] = None,
    ) -> Decoded:
        """
        Args:
            content: (N, Q, D).
            reference: (N, Q, 4) cxcywh in [0, 1].
            blocked: (Q, Q) bool, True where a query (row) must not see another (column).
            relation: let boxes steer the self-attention.
            branches_from: compute the branches of the queries from this index on; None: of none.
        """
        x, before, source = content, reference, reference
        bias = None
        logits, boxes, branch_logits, branch_boxes = [], [], [], []
        for i, layer in enumerate(self.layers):
            reference = before.detach()
            sampled = levels.on_levels(reference)
            pos = self.ref_point_head(encode_boxes(sampled[:, :, 0], self.embed_dim // 2).to(x.dtype))
            if i:
                pos = pos * self.query_scale(x)
            inputs = (x, pos, sampled, memory, levels.shapes, blocked, levels.padding, bias)
            if branches_from is None:
                x = layer(*inputs)
            else:
                x, branches = layer.with_branches(*inputs, first=branches_from)
                branches = self.norm(branches)
                branch_logits.append(self.class_embed[i](branches))
                branch_boxes.append(refine(self.bbox_embed[i](branches), reference[:, branches_from:], EPS))
            normed = self.norm(x)
            logits.append(self.class_embed[i](normed))
            boxes.append(refine(self.bbox_embed[i](normed), before, EPS))
            if i + 1 < len(self.layers):
                if relation:
                    bias, source = self.position_relation(source, boxes[-1]), boxes[-1]
                before = refine(self.bbox_embed[i](x), reference, EPS)
        return stacked(logits, boxes, branch_logits, branch_boxes)
