"""Mask DINO's decoder (https://arxiv.org/abs/2206.02777): select queries, refine them layer by layer."""
from dataclasses import dataclass, replace
from typing import Optional, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn

from lowrank_d2.layers.boxes import inverse_sigmoid
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.mlp import MLP
from lowrank_d2.layers.position_encoding import cell_centers, encode_boxes
from lowrank_d2.modeling.branch_settings import BranchSettings
from lowrank_d2.modeling.deformable_transformer import DecoderLayer
from lowrank_d2.modeling.denoising import DenoisingQueries
from lowrank_d2.modeling.maskdino.heads import PredictionHeads
from lowrank_d2.modeling.maskdino.pixel_decoder import PixelFeatures
from lowrank_d2.modeling.predictions import Prediction, Predictions

NUM_HEADS = 8
BOX_TYPES = ("no", "mask2box", "bitmask")


@dataclass(frozen=True)
class Selection:
    """The tokens that become queries.

    Attributes:
        scores: (N, S) largest class logit of every token.
        indices: (N, Q) the chosen tokens, best first.
        content: (N, Q, D).
        boxes_unsigmoid: (N, Q, 4).
    """

    scores: Tensor
    indices: Tensor
    content: Tensor
    boxes_unsigmoid: Tensor


class QuerySelection(nn.Module):
    """The two-stage proposal step: scores every token of the memory and takes the best."""

    def __init__(self, *, embed_dim: int, num_queries: int):
        super().__init__()
        self.num_queries = num_queries
        self.enc_output = Linear(embed_dim, embed_dim)
        self.enc_output_norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        heads: PredictionHeads,
        padding: Optional[Tensor] = None,
    ) -> Selection:
        """
        Args:
            memory: (N, S, D), levels of the sizes `shapes` end to end; the first level gets the smallest boxes.
            heads: the decoder's; its class head scores the tokens without its norm.
            padding: (N, S) bool; True never proposes.
        """
        proposals = make_proposals(shapes, like=memory).expand(len(memory), -1, -1)
        if padding is not None:
            proposals = proposals.masked_fill(padding[..., None], torch.inf)
        memory = memory.masked_fill(proposals[..., :1].isinf(), 0)
        # Only the chosen tokens can have a gradient: all are scored without one, then the chosen are computed again.
        with torch.no_grad():
            scores = heads.class_embed(self.enc_output_norm(self.enc_output(memory))).amax(-1)
        eligible = scores if padding is None else scores.masked_fill(padding, -torch.inf)
        indices = eligible.topk(min(self.num_queries, eligible.shape[1]), dim=1).indices

        def chosen(x: Tensor) -> Tensor:
            return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))

        content = self.enc_output_norm(self.enc_output(chosen(memory)))
        return Selection(scores, indices, content, heads.bbox_embed(content) + chosen(proposals))


class MaskDINODecoder(nn.Module):
    """Turns the pixel decoder's features into predictions."""

    def __init__(
        self,
        *,
        in_channels: int,
        embed_dim: int,
        mask_dim: int,
        feedforward_dim: int,
        num_layers: int,
        num_levels: int,
        num_queries: int,
        num_classes: int,
        no_object_logit: bool,
        two_stage: bool,
        learn_content: bool,
        initial_prediction: bool,
        box_type: str,
        enforce_input_proj: bool,
        branches: Optional[BranchSettings] = None,
    ):
        """
        Args:
            in_channels: width of the memory that the pixel decoder gives.
            no_object_logit: an additional class for "nothing", for losses by softmax.
            two_stage: queries start from the memory's best tokens; otherwise they are learned.
            learn_content: two-stage: the queries' content is learned all the same.
            initial_prediction: predict from the queries that enter the first layer, too.
            box_type: "no" starts from the selected boxes; "mask2box" and "bitmask" from those around the first masks.
            branches: further predictions of every layer, in training.
        """
        super().__init__()
        self.two_stage, self.box_type, self.initial_prediction = two_stage, box_type, initial_prediction
        self.embed_dim, self.num_queries, self.num_classes = embed_dim, num_queries, num_classes
        project = in_channels != embed_dim or enforce_input_proj
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, embed_dim, kernel_size=1) for _ in range(num_levels if project else 0)
        )
        for projection in self.input_proj:
            weight_init.c2_xavier_fill(projection)
        if two_stage:
            self.selection = QuerySelection(embed_dim=embed_dim, num_queries=num_queries)
        else:
            self.query_embed = nn.Embedding(num_queries, 4)  # unsigmoid boxes
        if learn_content or not two_stage:
            self.query_feat = nn.Embedding(num_queries, embed_dim)
        self.learn_content = learn_content or not two_stage
        self.label_embedding = nn.Embedding(num_classes, embed_dim)
        self.heads = PredictionHeads(
            embed_dim=embed_dim, num_logits=num_classes + int(no_object_logit), mask_dim=mask_dim
        )
        self.ref_point_head = MLP(input_dim=2 * embed_dim, hidden_dim=embed_dim, output_dim=embed_dim, num_layers=2)
        for layer in self.ref_point_head.layers:
            nn.init.xavier_uniform_(layer.weight)
        self.layers = nn.ModuleList(
            DecoderLayer(
                embed_dim=embed_dim,
                feedforward_dim=feedforward_dim,
                num_heads=NUM_HEADS,
                num_levels=num_levels,
                branches=branches.build(embed_dim=embed_dim, hidden_dim=feedforward_dim, dropout=0.0) if branches else None,
            )
            for _ in range(num_layers)
        )
        self.has_branches = branches is not None

    def forward(self, features: PixelFeatures, denoising: Optional[DenoisingQueries] = None) -> Predictions:
        """
        Args:
            denoising: noised ground truth that is decoded beside the queries, in training.
        """
        memory, shapes, padding = self._flatten(features)
        content, references, interm = self._initial_queries(memory, shapes, padding, features.mask_features)
        blocked, num_denoising = None, 0
        if denoising is not None:
            num_denoising = denoising.content.shape[1]
            blocked = denoising.attention_mask(content.shape[1])
            content = torch.cat((denoising.content, content), dim=1)
            references = torch.cat((denoising.boxes_unsigmoid, references), dim=1)

        x, boxes = content, references.sigmoid()
        predictions = [self.heads(x, boxes)] if self.initial_prediction else []
        reference = boxes
        branches: list[list[Prediction]] = []
        for layer in self.layers:
            pos = self.ref_point_head(encode_boxes(reference, self.embed_dim // 2))
            with torch.autocast(x.device.type, enabled=False):
                inputs = (x.float(), pos.float(), reference, memory, shapes, blocked, padding)
                if self.training and self.has_branches:
                    x, outputs = layer.with_branches(*inputs, first=num_denoising)
                    branches.append(self._branch_predictions(outputs, reference[:, num_denoising:]))
                else:
                    x = layer(*inputs)
            # The predicted boxes see the gradient of this and the previous layer, the decoder's own path of none.
            normed = self.heads.norm(x)
            predictions.append(self.heads(normed, self.heads.refine(normed, boxes)))
            boxes = self.heads.refine(x, reference)
            reference = boxes.detach()
        if self.training and denoising is None:
            predictions[-1] = self._with_label_embedding(predictions[-1])
        collected = _collect(predictions, interm, features.mask_features, num_denoising)
        return replace(collected, branches=tuple(zip(*branches)))

    def _branch_predictions(self, outputs: Tensor, reference: Tensor) -> list[Prediction]:
        """What the heads make of a layer's branches (branches, N, Q, D), whose boxes move from those of the layer."""
        normed = [self.heads.norm(output) for output in outputs]
        return [self.heads(x, self.heads.refine(x, reference.detach())) for x in normed]

    def _flatten(self, features: PixelFeatures) -> tuple[Tensor, list[tuple[int, int]], Optional[Tensor]]:
        """The memory (N, S, D) with its levels in reversed order, their sizes, and the padding (N, S)."""
        levels = features.memory
        if self.input_proj:
            levels = [project(level) for project, level in zip(self.input_proj, levels)]
        levels = levels[::-1]
        shapes = [tuple(level.shape[-2:]) for level in levels]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        padding = None
        if features.padding is not None:
            padding = torch.cat([p.flatten(1) for p in features.padding[::-1]], dim=1)
        return memory, shapes, padding

    def _initial_queries(
        self, memory: Tensor, shapes: Sequence[tuple[int, int]], padding: Optional[Tensor], mask_features: Tensor
    ) -> tuple[Tensor, Tensor, Optional[Prediction]]:
        """Content (N, Q, D), unsigmoid boxes (N, Q, 4), and what the selection predicted."""
        n = len(memory)
        if not self.two_stage:
            return self.query_feat.weight.expand(n, -1, -1), self.query_embed.weight.expand(n, -1, -1), None
        selected = self.selection(memory, shapes, self.heads, padding)
        interm = self.heads(selected.content, selected.boxes_unsigmoid.sigmoid())
        content = selected.content.detach()
        if self.learn_content:
            content = self.query_feat.weight[: content.shape[1]].expand(n, -1, -1)
        if self.box_type == "no":
            return content, selected.boxes_unsigmoid.detach(), interm
        with torch.no_grad():
            boxes = boxes_around(interm.mask_logits(mask_features) > 0, inclusive=self.box_type == "bitmask")
            return content, inverse_sigmoid(boxes), interm

    def _with_label_embedding(self, prediction: Prediction) -> Prediction:
        """The same prediction, with a gradient of zero to the label embedding: every parameter takes part in a step."""
        nothing = 0.0 * self.label_embedding.weight.sum()
        return replace(prediction, logits=prediction.logits + nothing)


def make_proposals(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """One box per cell, larger from level to level, unsigmoid; boxes too near to the border are all infinite.

    Args:
        shapes: sizes (H, W) of the levels.
        like: a tensor whose device and dtype the result takes.

    Returns:
        (1, S, 4)
    """
    centers = cell_centers(shapes, like=like)
    sides = torch.cat([like.new_full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(shapes)])
    boxes = torch.cat((centers, sides), dim=1)
    inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
    return torch.log(boxes / (1 - boxes)).masked_fill(~inside, torch.inf)[None]


def boxes_around(masks: Tensor, *, inclusive: bool) -> Tensor:
    """The boxes around masks, as fractions of their size.

    Args:
        masks: (..., H, W) bool.
        inclusive: True counts the last pixel ("bitmask"), and an empty mask becomes (0, 0, 0, 0). False ends at its
            near edge ("mask2box"), and an empty mask becomes (1, 1, 0, 0), as upstream.

    Returns:
        (..., 4) cxcywh
    """
    centers, sides = [], []
    for axis in (-2, -1):  # what is left after reducing rows: x, then y
        hit = masks.any(axis).to(torch.uint8)
        size = hit.shape[-1]
        first = hit.argmax(-1)
        end = size - hit.flip(-1).argmax(-1) - (0 if inclusive else 1)
        empty = hit.amax(-1) == 0
        centers.append(((first + end) / (2 * size)).masked_fill(empty, 0.0 if inclusive else 1.0))
        sides.append(((end - first) / size).masked_fill(empty, 0.0))
    return torch.stack(centers + sides, dim=-1)


def _collect(
    predictions: Sequence[Prediction], interm: Optional[Prediction], mask_features: Tensor, num_denoising: int
) -> Predictions:
    """Cuts off the first `num_denoising` queries of every prediction."""
    if num_denoising == 0:
        return Predictions(mask_features, predictions[-1], tuple(predictions[:-1]), interm)
    queries = [_part(p, slice(num_denoising, None)) for p in predictions]
    denoising = [_part(p, slice(num_denoising)) for p in predictions]
    return Predictions(mask_features, queries[-1], tuple(queries[:-1]), interm, denoising[-1], tuple(denoising[:-1]))


def _part(prediction: Prediction, part: slice) -> Prediction:
    return Prediction(prediction.logits[:, part], prediction.boxes[:, part], prediction.mask_embed[:, part])
