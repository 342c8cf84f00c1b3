"""Bipartite matching of predictions and ground truth (DETR, arXiv:2005.12872, section 3.1; costs as in Mask DINO)."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Optional

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, giou
from lowrank_d2.layers.draws import Draws
from lowrank_d2.layers.linear import linear
from lowrank_d2.layers.points import pairwise_bce_and_dice, sample_at, sample_rows
from lowrank_d2.modeling.predictions import Prediction, Target


@dataclass(frozen=True)
class Pairs:
    """Which query answers for which instance in one image.

    Attributes:
        queries, targets: (R,) int64 indices of the pairs.
        groups: the pairs are this many equally long runs, each over the same targets in the same order (denoising has
            several).
    """

    queries: Tensor
    targets: Tensor
    groups: int = 1


class HungarianMatcher:
    """Finds the cheapest one-to-one assignment for every prediction set and image of a step.

    A cost of weight 0 is not computed, and what it reads need not exist: without mask costs the predictions need no
    mask embeddings and the targets no masks, without box costs no boxes.

    Args:
        cost_class, cost_box, cost_giou, cost_mask, cost_dice: weights of the costs.
        class_cost: "focal" (of sigmoid probabilities, alpha 0.25, gamma 2) or "softmax" (minus the probability).
        num_points: points per image at which masks are compared.
        giou_eps: see `layers.boxes.giou`; 0 as in DETR and YOLOS.
        focal_eps: added to the probabilities before the logarithm.
    """

    def __init__(
        self,
        *,
        cost_class: float,
        cost_box: float = 0.0,
        cost_giou: float = 0.0,
        cost_mask: float = 0.0,
        cost_dice: float = 0.0,
        class_cost: str = "focal",
        num_points: int = 0,
        giou_eps: float = 1e-6,
        focal_eps: float = 1e-8,
    ):
        self.cost_class, self.cost_box, self.cost_giou = cost_class, cost_box, cost_giou
        self.cost_mask, self.cost_dice = cost_mask, cost_dice
        self.class_cost = {"focal": partial(focal_cost, eps=focal_eps), "softmax": softmax_cost}[class_cost]
        self.num_points = num_points
        self.giou_eps = giou_eps

    @torch.no_grad()
    def __call__(
        self,
        predictions: dict[str, Prediction],
        targets: Sequence[Target],
        mask_features: Optional[Tensor] = None,
        draws: Optional[Draws] = None,
    ) -> dict[str, list[Pairs]]:
        """Matches each prediction set by itself.

        Args:
            predictions: by name ("layer_last", "layer_0", "interm"); the name appears in the purposes of the draws.
            targets: one per image.
            mask_features, draws: needed with mask costs.

        Returns:
            for each name the pairs of every image, sorted by query.

        Raises:
            ValueError: when a cost is not a number.
        """
        sets = list(predictions.values())
        costs = []  # (sets, Q, n) of every image
        for image, target in enumerate(targets):
            cost = self._class_and_box_cost(sets, image, target)
            if (self.cost_mask or self.cost_dice) and len(target.labels):
                # Converted once per image: the points differ between the sets, the maps do not.
                size, masks = mask_features.shape[-2:], target.masks[None].float()
                table = mask_features[image].float().flatten(1).T.contiguous()
                for row, (name, prediction) in zip(cost, predictions.items()):
                    purpose = f"matcher/{name}/image_{image}/point_coords"
                    points = draws.uniform(purpose, (1, self.num_points, 2), cost.device)
                    # Sampling and the product with the embeddings are linear: features are sampled instead of masks.
                    logits = linear(prediction.mask_embed[image].float(), sample_rows(table, size, points[0]))
                    row += self._mask_cost(logits, sample_at(masks, points[:, None])[0, :, 0])
            costs.append(cost)
        return assign(list(predictions), costs)

    def _class_and_box_cost(self, sets: list[Prediction], image: int, target: Target) -> Tensor:
        cost = self.cost_class * self.class_cost(torch.stack([p.logits[image] for p in sets]).float(), target.labels)
        if not (self.cost_box or self.cost_giou):
            return cost
        boxes = torch.stack([p.boxes[image] for p in sets]).float()[:, :, None]
        distance = (boxes - target.boxes).abs().sum(-1)
        overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target.boxes), self.giou_eps)
        return cost + self.cost_box * distance - self.cost_giou * overlap

    def _mask_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        bce, dice = pairwise_bce_and_dice(logits, labels)
        return self.cost_mask * bce + self.cost_dice * dice


def assign(names: Sequence[str], costs: Sequence[Tensor]) -> dict[str, list[Pairs]]:
    """The cheapest assignment in every matrix of costs; of more instances than queries, as many as there are queries.

    Args:
        names: of the prediction sets.
        costs: for every image (sets, Q, n), n being its instances.

    Returns:
        for each name the pairs of every image, sorted by query.

    Raises:
        ValueError: when a cost is not a number.
    """
    device = costs[0].device
    # One transfer for the whole step: a copy per matrix would wait for the device every time.
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    if flat.isnan().any():
        raise ValueError("matching costs are not numbers; look for nan in the predictions, the boxes or the masks")
    pairs: dict[str, list[Pairs]] = {name: [] for name in names}
    for cost, values in zip(costs, flat.split([cost.numel() for cost in costs])):
        for name, matrix in zip(names, values.view(cost.shape).numpy()):
            queries, indices = linear_sum_assignment(matrix)
            pairs[name].append(Pairs(torch.as_tensor(queries).to(device), torch.as_tensor(indices).to(device)))
    return pairs


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-8) -> Tensor:
    """Focal loss of answering each label minus that of answering background: (..., Q, C), (n,) -> (..., Q, n)."""
    probability = logits[..., labels].sigmoid()
    positive = alpha * (1 - probability) ** gamma * -(probability + eps).log()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + eps).log()
    return positive - negative


def softmax_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each label: (..., Q, C), (n,) -> (..., Q, n)."""
    return -logits.softmax(-1)[..., labels]
