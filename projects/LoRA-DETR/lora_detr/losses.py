"""Class and box losses of many prediction sets at once, whatever assigned their queries to objects."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, giou, iou
from lowrank_d2.modeling.one_to_many import Assignment, PaddedTargets


@dataclass(frozen=True)
class Labels:
    """What the class logits of S sets (S, N, Q, C) should be.

    Attributes:
        positive: (S, N, Q, C) bool, the one class that a query has to answer with.
        every: (S, N, Q, C), for every pair the quality of its class; of several pairs the largest.
    """

    positive: Tensor
    every: Tensor

    @classmethod
    def of(cls, shape: torch.Size, assignment: Assignment, classes: Tensor, quality: Tensor) -> "Labels":
        """
        Args:
            shape: (S, N, Q, C).
            classes, quality: (R,), of the pairs.
        """
        place = (assignment.sets * shape[1] + assignment.images) * shape[2] + assignment.queries
        place = place * shape[3] + classes
        size = torch.Size(shape).numel()
        positive = torch.zeros(size, dtype=torch.bool, device=quality.device)
        positive[place[assignment.decides]] = True
        every = quality.new_zeros(size).scatter_reduce(0, place, quality, "amax")
        return cls(positive.view(shape), every.view(shape))


def focal(logits: Tensor, labels: Labels) -> Tensor:
    """Focal loss of hard labels (alpha 0.25, gamma 2) of each logit."""
    return sigmoid_focal_loss(logits, labels.positive.to(logits.dtype), alpha=0.25, gamma=2.0)


def quality_focal(logits: Tensor, labels: Labels) -> Tensor:
    """Cross entropy to the quality; whatever is not positive weighs p^1.5 (equation 8, with the code's factor 0.25).

    A query with two objects of different classes keeps the soft label of the class that does not decide, but with the
    weight of a negative, as released.
    """
    weight = torch.where(labels.positive, 1.0, logits.detach().sigmoid() ** 1.5)
    return 0.25 * weight * F.binary_cross_entropy_with_logits(logits, labels.every, reduction="none")


def varifocal(logits: Tensor, labels: Labels) -> Tensor:
    """Relation-DETR's: cross entropy to the quality; positives weigh their quality, the rest 0.75 p^2."""
    target = torch.where(labels.positive, labels.every, 0.0)
    weight = torch.where(labels.positive, target, 0.75 * logits.detach().sigmoid() ** 2)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


ClassLoss = Callable[[Tensor, Labels], Tensor]


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    assignment: Assignment,
    targets: PaddedTargets,
    num: Tensor,
    class_loss: ClassLoss,
    scores: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of S sets, each summed over images and queries and divided by `num`.

    Args:
        logits: (S, N, Q, C); boxes: (S, N, Q, 4) cxcywh.
        scores: (S, N, G, Q), the quality of each pair; None: the IoU of its boxes.

    Returns:
        class loss, L1 distance of cxcywh, one minus GIoU: (S,) each. Box losses count every pair.
    """
    sets, images, queries = assignment.sets, assignment.images, assignment.queries
    predicted = boxes[sets, images, queries]
    true = targets.boxes[images, assignment.targets]
    corners, true_corners = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true)
    if scores is None:
        quality = iou(corners.detach(), true_corners)
    else:
        quality = scores[sets, images, assignment.targets, queries]
    labels = Labels.of(logits.shape, assignment, targets.labels[images, assignment.targets], quality)
    by_pair = torch.stack(((predicted - true).abs().sum(-1), 1 - giou(corners, true_corners, eps=0)), dim=-1)
    distance, overlap = by_pair.new_zeros(len(logits), 2).index_add(0, sets, by_pair).unbind(1)
    return class_loss(logits, labels).flatten(1).sum(1) / num, distance / num, overlap / num


def named(
    values: tuple[Tensor, Tensor, Tensor], class_name: str, weights: Mapping[str, float], suffixes: list[str]
) -> dict[str, Tensor]:
    """The weighted losses of S sets under their names.

    Args:
        values: of `set_losses`.
        class_name: of the class loss, such as "loss_ce".
        weights: "class", "bbox" and "giou".
        suffixes: of the S sets.
    """
    keys = (class_name, "loss_bbox", "loss_giou")
    weighted = [weight * value for weight, value in zip((weights["class"], weights["bbox"], weights["giou"]), values)]
    return {key + suffix: part[i] for key, part in zip(keys, weighted) for i, suffix in enumerate(suffixes)}
