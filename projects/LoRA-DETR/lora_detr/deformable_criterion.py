"""The losses of Deformable DETR with branches: matched layers, one-to-many branches, proposals."""
from collections.abc import Mapping, Sequence
from typing import Optional

import torch
from torch import Tensor

from lora_detr import losses
from lora_detr.encoder import Proposals
from lora_detr.heads import Decoded
from lora_detr.losses import ClassLoss
from lora_detr.matching import match_layers, num_targets
from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling.matcher import HungarianMatcher
from lowrank_d2.modeling.one_to_many import Assignment, OneToManyAssigner, PaddedTargets
from lowrank_d2.modeling.predictions import Target

CLASS_NAME = "loss_ce"


class DeformableCriterion:
    """Compares predictions with the ground truth.

    Args:
        matcher: pairs every layer's queries with objects.
        anchor_matcher: pairs the proposals' anchors with objects; looks at boxes alone.
        class_loss: of layers and branches; the proposals, which know no classes, always have the focal loss.
        weights, branch_weights, encoder_weights: of the "class", "bbox" and "giou" losses.
        assigner: gives the branches their pairs; None without branches.
        branch_suffix: of the branches' losses, with "{}" for the number of the branch.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        anchor_matcher: HungarianMatcher,
        class_loss: ClassLoss,
        weights: Mapping[str, float],
        branch_weights: Mapping[str, float],
        encoder_weights: Mapping[str, float],
        assigner: Optional[OneToManyAssigner] = None,
        branch_suffix: str = "_o2m_lora_{}",
    ):
        self.matcher, self.anchor_matcher = matcher, anchor_matcher
        self.class_loss = class_loss
        self.weights, self.branch_weights, self.encoder_weights = weights, branch_weights, encoder_weights
        self.assigner, self.branch_suffix = assigner, branch_suffix

    def __call__(
        self, decoded: Decoded, proposals: Optional[Proposals], targets: Sequence[Target], draws: Draws
    ) -> dict[str, Tensor]:
        """The weighted losses of a step, by the original's names.

        Args:
            proposals: of a two-stage model.
            targets: one per image.

        Raises:
            ValueError: a matching cost is not a number.
        """
        padded = PaddedTargets.of(targets)
        num = num_targets(targets, decoded.boxes.device)
        layers = [f"_{i}" for i in range(len(decoded.logits) - 1)] + [""]
        matched = match_layers(self.matcher, decoded.logits, decoded.boxes, targets)
        values = losses.set_losses(decoded.logits, decoded.boxes, matched, padded, num, self.class_loss)
        result = losses.named(values, CLASS_NAME, self.weights, layers)
        if self.assigner is not None:
            result |= self._branch_losses(decoded, matched, padded, num, layers, draws)
        if proposals is not None:
            result |= self._proposal_losses(proposals, targets, num)
        return result

    def _branch_losses(
        self,
        decoded: Decoded,
        matched: Assignment,
        targets: PaddedTargets,
        num: Tensor,
        layers: list[str],
        draws: Draws,
    ) -> dict[str, Tensor]:
        pairs, scores = self.assigner(decoded.branch_logits, decoded.branch_boxes, targets, matched, draws)
        logits, boxes = decoded.branch_logits.flatten(0, 1), decoded.branch_boxes.flatten(0, 1)
        values = losses.set_losses(logits, boxes, pairs, targets, num, self.class_loss, scores)
        suffixes = [layer + self.branch_suffix.format(i) for i in range(len(decoded.branch_logits)) for layer in layers]
        return losses.named(values, CLASS_NAME, self.branch_weights, suffixes)

    def _proposal_losses(self, proposals: Proposals, targets: Sequence[Target], num: Tensor) -> dict[str, Tensor]:
        """Without classes: every object counts as the first. Matched are the anchors, compared the refined boxes."""
        single = [Target(torch.zeros_like(target.labels), target.boxes) for target in targets]
        logits, boxes = proposals.logits[None], proposals.boxes[None]
        pairs = match_layers(self.anchor_matcher, logits, proposals.anchors[None], single)
        values = losses.set_losses(logits, boxes, pairs, PaddedTargets.of(single), num, losses.focal)
        return losses.named(values, CLASS_NAME, self.encoder_weights, ["_enc"])
