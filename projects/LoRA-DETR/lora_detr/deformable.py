"""Deformable DETR's queries and decoder, with the refinements of Deformable DETR++ (H-DETR, DINO) as switches."""
import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor, nn

from lora_detr.encoder import Proposals, ProposalTokens, gather, xavier_linears
from lora_detr.heads import Decoded, box_head, class_head, refine, stacked
from lora_detr.levels import Levels
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.position_encoding import sine_features
from lowrank_d2.modeling.deformable_transformer import DecoderLayer

EPS = 1e-5  # of the inverse sigmoid


@dataclass(frozen=True)
class Queries:
    """What enters the decoder.

    Attributes:
        content, position: (N, Q, D).
        reference: (N, Q, 4) boxes cxcywh or (N, Q, 2) points, in [0, 1].
    """

    content: Tensor
    position: Tensor
    reference: Tensor


class LearnedQueries(nn.Module):
    """One-stage: content and position are learned, the point follows from the position."""

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, 2 * embed_dim)
        self.reference_points = Linear(embed_dim, 2)
        xavier_linears(self)

    def forward(self, images: int) -> Queries:
        position, content = self.query_embed.weight.expand(images, -1, -1).chunk(2, dim=-1)
        return Queries(content, position, self.reference_points(position).sigmoid())


class SelectedQueries(nn.Module):
    """Two-stage: the best tokens of the memory, judged by the first class alone, become queries."""

    def __init__(self, *, num_queries: int, embed_dim: int, mixed: bool):
        """
        Args:
            mixed: the content is learned, and the tokens give boxes and positions alone.
        """
        super().__init__()
        self.num_queries = num_queries
        self.tokens = ProposalTokens(embed_dim)
        self.pos_trans = Linear(2 * embed_dim, 2 * embed_dim)
        self.pos_trans_norm = nn.LayerNorm(2 * embed_dim)
        xavier_linears(self.pos_trans)
        self.query_embed = nn.Embedding(num_queries, embed_dim) if mixed else None

    def forward(
        self,
        memory: Tensor,
        levels: Levels,
        class_embed: Callable[[Tensor], Tensor],
        bbox_embed: Callable[[Tensor], Tensor],
    ) -> tuple[Queries, Proposals]:
        """
        Args:
            class_embed, bbox_embed: the heads of the proposals.
        """
        tokens, anchors = self.tokens(memory, levels)
        logits = class_embed(tokens)
        chosen = logits[..., 0].topk(min(self.num_queries, logits.shape[1]), dim=1).indices
        proposals = Proposals(logits, bbox_embed(tokens) + anchors, anchors.sigmoid(), chosen)
        reference = gather(proposals.boxes_unsigmoid.detach(), chosen).sigmoid()
        dim = self.pos_trans.in_features // 4
        code = sine_features(reference * (2 * math.pi), dim).flatten(-2).to(memory.dtype)
        position, content = self.pos_trans_norm(self.pos_trans(code)).chunk(2, dim=-1)
        if self.query_embed is not None:
            content = self.query_embed.weight[: content.shape[1]].expand_as(content)
        return Queries(content, position, reference), proposals


class DeformableDecoder(nn.Module):
    """Layers that refine boxes one after the other, with heads of their own."""

    def __init__(
        self,
        *,
        num_layers: int,
        embed_dim: int,
        num_labels: int,
        num_heads_of_classes: int,
        look_forward_twice: bool,
        branches_look_forward_twice: bool,
        make_layer: Callable[[], DecoderLayer],
    ):
        """
        Args:
            num_heads_of_classes: class heads and box heads; one more than layers with proposals, which use the last.
            look_forward_twice: boxes carry their gradient one layer back.
            branches_look_forward_twice: so do the branches' boxes.
            make_layer: gives a new layer.
        """
        super().__init__()
        self.look_forward_twice = look_forward_twice
        self.branches_look_forward_twice = branches_look_forward_twice
        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.class_embed = nn.ModuleList(class_head(embed_dim, num_labels) for _ in range(num_heads_of_classes))
        self.bbox_embed = nn.ModuleList(box_head(embed_dim) for _ in range(num_heads_of_classes))
        if num_heads_of_classes == num_layers:  # boxes that start from points are small
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)

    def forward(self, queries: Queries, memory: Tensor, levels: Levels, with_branches: bool) -> Decoded:
        """
        Args:
            with_branches: compute the branches, too.
        """
        x, reference = queries.content, queries.reference
        before = reference  # with the gradient that the boxes of the next layer carry on
        logits, boxes, branch_logits, branch_boxes = [], [], [], []
        for i, layer in enumerate(self.layers):
            inputs = (x, queries.position, levels.on_levels(reference), memory, levels.shapes, None, levels.padding)
            if with_branches:
                x, branches = layer.with_branches(*inputs)
                branch_logits.append(self.class_embed[i](branches))
                start = before if self.branches_look_forward_twice else reference.detach()
                branch_boxes.append(refine(self.bbox_embed[i](branches), start, EPS))
            else:
                x = layer(*inputs)
            change = self.bbox_embed[i](x)
            logits.append(self.class_embed[i](x))
            boxes.append(refine(change, before, EPS))
            refined = refine(change, reference, EPS)
            reference = refined.detach()
            before = refined if self.look_forward_twice else reference
        return stacked(logits, boxes, branch_logits, branch_boxes)
