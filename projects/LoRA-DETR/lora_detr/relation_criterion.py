"""The losses of Relation-DETR: matched layers, branches, denoising and hybrid queries, proposals."""
from collections.abc import Mapping, Sequence
from typing import Optional

from torch import Tensor

from lora_detr import losses
from lora_detr.encoder import Proposals, gather
from lora_detr.heads import Decoded
from lora_detr.matching import match_layers, num_targets
from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling.denoising import DenoisingLayout
from lowrank_d2.modeling.matcher import HungarianMatcher
from lowrank_d2.modeling.one_to_many import Assignment, OneToManyAssigner, PaddedTargets
from lowrank_d2.modeling.predictions import Target

CLASS_NAME = "loss_class"


class RelationCriterion:
    """Compares predictions with the ground truth; labels are soft by the boxes' overlap everywhere.

    Args:
        matcher: pairs queries, and chosen tokens, with objects.
        anchor_matcher: pairs the anchors of all tokens with objects; None: only chosen tokens are compared, as the
            original does without branches.
        weights, branch_weights, encoder_weights: of the "class", "bbox" and "giou" losses.
        extra_weights: the same of denoising and hybrid queries.
        repeats: how often objects are repeated for the hybrid queries.
        assigner: gives the branches their pairs; None without branches.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        anchor_matcher: Optional[HungarianMatcher],
        weights: Mapping[str, float],
        extra_weights: Mapping[str, float],
        branch_weights: Mapping[str, float],
        encoder_weights: Mapping[str, float],
        repeats: int,
        assigner: Optional[OneToManyAssigner] = None,
    ):
        self.matcher, self.anchor_matcher = matcher, anchor_matcher
        self.weights, self.extra_weights = weights, extra_weights
        self.branch_weights, self.encoder_weights = branch_weights, encoder_weights
        self.repeats, self.assigner = repeats, assigner

    def primary(
        self, decoded: Decoded, proposals: Proposals, targets: Sequence[Target], draws: Draws
    ) -> dict[str, Tensor]:
        """The weighted losses of the layers, their branches and the proposals, by the original's names.

        Raises:
            ValueError: a matching cost is not a number.
        """
        padded, num = PaddedTargets.of(targets), num_targets(targets, decoded.boxes.device)
        layers = _layers(decoded)
        matched = match_layers(self.matcher, decoded.logits, decoded.boxes, targets)
        values = losses.set_losses(decoded.logits, decoded.boxes, matched, padded, num, losses.varifocal)
        result = losses.named(values, CLASS_NAME, self.weights, layers)
        if self.assigner is not None:
            pairs, _ = self.assigner(decoded.branch_logits, decoded.branch_boxes, padded, matched, draws)
            logits, boxes = decoded.branch_logits.flatten(0, 1), decoded.branch_boxes.flatten(0, 1)
            values = losses.set_losses(logits, boxes, pairs, padded, num, losses.varifocal)
            suffixes = [f"{layer}_lora_{i}" for i in range(len(decoded.branch_logits)) for layer in layers]
            result |= losses.named(values, CLASS_NAME, self.branch_weights, suffixes)
        if self.anchor_matcher is None:
            proposals = _chosen(proposals)
        weights, matcher = self.encoder_weights, self.anchor_matcher
        return result | self._proposal_losses(proposals, targets, num, weights, "_enc", matcher)

    def denoising(
        self, decoded: Decoded, layout: Optional[DenoisingLayout], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The losses of the denoising queries, whose objects are known; what is no noised object counts as background.

        Args:
            layout: None in a step without objects, whose losses are zero.
        """
        layers = [f"_dn{layer}" for layer in _layers(decoded)]
        device = decoded.boxes.device
        num = num_targets(targets, device)  # other processes, which wait for it, may have objects
        if layout is None:
            nothing = decoded.boxes.new_zeros(len(layers))
            return losses.named((nothing, nothing, nothing), CLASS_NAME, self.extra_weights, layers)
        pairs = [layout.pairs(image, device) for image in range(len(targets))]
        known = Assignment.of_pairs([pairs] * len(layers), device)
        padded = PaddedTargets.of(targets)
        values = losses.set_losses(
            decoded.logits, decoded.boxes, known, padded, num * layout.groups, losses.varifocal
        )
        return losses.named(values, CLASS_NAME, self.extra_weights, layers)

    def hybrid(self, decoded: Decoded, proposals: Proposals, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of the hybrid queries and their tokens, against repeated objects."""
        repeated = [
            Target(target.labels.repeat(self.repeats), target.boxes.repeat(self.repeats, 1)) for target in targets
        ]
        num = num_targets(repeated, decoded.boxes.device)
        matched = match_layers(self.matcher, decoded.logits, decoded.boxes, repeated)
        values = losses.set_losses(
            decoded.logits, decoded.boxes, matched, PaddedTargets.of(repeated), num, losses.varifocal
        )
        result = losses.named(values, CLASS_NAME, self.extra_weights, [f"{layer}_hybrid" for layer in _layers(decoded)])
        return result | self._proposal_losses(proposals, repeated, num, self.extra_weights, "_enc_hybrid")

    def _proposal_losses(
        self,
        proposals: Proposals,
        targets: Sequence[Target],
        num: Tensor,
        weights: Mapping[str, float],
        suffix: str,
        anchor_matcher: Optional[HungarianMatcher] = None,
    ) -> dict[str, Tensor]:
        """Matched are the anchors if there is a matcher for them, else the refined boxes; these are compared."""
        logits, boxes = proposals.logits[None], proposals.boxes[None]
        if anchor_matcher is None:
            pairs = match_layers(self.matcher, logits, boxes, targets)
        else:
            pairs = match_layers(anchor_matcher, logits, proposals.anchors[None], targets)
        values = losses.set_losses(logits, boxes, pairs, PaddedTargets.of(targets), num, losses.varifocal)
        return losses.named(values, CLASS_NAME, weights, [suffix])


def _layers(decoded: Decoded) -> list[str]:
    """Suffixes of the layers; the last one has none."""
    return [f"_{i}" for i in range(len(decoded.logits) - 1)] + [""]


def _chosen(proposals: Proposals) -> Proposals:
    """The proposals of the chosen tokens alone."""
    chosen = proposals.chosen
    picked = (gather(x, chosen) for x in (proposals.logits, proposals.boxes_unsigmoid, proposals.anchors))
    return Proposals(*picked, chosen)
