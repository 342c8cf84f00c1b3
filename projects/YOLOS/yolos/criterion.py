"""The set loss of YOLOS: one assignment of detection tokens to objects, then class, box and overlap losses."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, giou
from lowrank_d2.modeling.matcher import HungarianMatcher, Pairs
from lowrank_d2.modeling.predictions import Prediction, Target


class YOLOSCriterion:
    """Compares the predictions of a batch with the ground truth.

    Args:
        matcher: assigns predictions to objects.
        num_labels: logits without "no object", which is the last one.
        class_weight, box_weight, giou_weight: weights of the three losses.
        no_object_weight: weight of "no object" in the classification.
        focal_gamma: exponent of the factor (1 - p) of each token's cross entropy; 0 is the cross entropy itself.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        num_labels: int,
        class_weight: float,
        box_weight: float,
        giou_weight: float,
        no_object_weight: float,
        focal_gamma: float,
    ):
        self.matcher = matcher
        self.num_labels = num_labels
        self.class_weight, self.box_weight, self.giou_weight = class_weight, box_weight, giou_weight
        self.no_object_weight = no_object_weight
        self.focal_gamma = focal_gamma

    def __call__(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The weighted losses, in float32 also under autocast.

        Args:
            prediction: of N images.
            targets: N; labels below `num_labels`, boxes as fractions of what the predictions are fractions of.

        Returns:
            {"loss_ce", "loss_bbox", "loss_giou"}: scalars.

        Raises:
            ValueError: a prediction is not a number.
        """
        with torch.autocast(prediction.logits.device.type, enabled=False):
            prediction = Prediction(prediction.logits.float(), prediction.boxes.float())
            pairs = self.matcher({"layer_last": prediction}, targets)["layer_last"]
            distance, overlap = self._box_losses(prediction, targets, pairs)
            return {
                "loss_ce": self.class_weight * self._class_loss(prediction, targets, pairs),
                "loss_bbox": self.box_weight * distance,
                "loss_giou": self.giou_weight * overlap,
            }

    def _class_loss(self, prediction: Prediction, targets: Sequence[Target], pairs: Sequence[Pairs]) -> Tensor:
        logits = prediction.logits
        labels = torch.full(logits.shape[:2], self.num_labels, device=logits.device)
        for row, pair, target in zip(labels, pairs, targets):
            row[pair.queries] = target.labels[pair.targets]
        weight = logits.new_ones(self.num_labels + 1)
        weight[-1] = self.no_object_weight
        return softmax_focal_loss(logits, labels, weight, self.focal_gamma)

    def _box_losses(
        self, prediction: Prediction, targets: Sequence[Target], pairs: Sequence[Pairs]
    ) -> tuple[Tensor, Tensor]:
        """L1 distance of cxcywh, and one minus GIoU; summed over the pairs, over the number of objects."""
        predicted = torch.cat([boxes[pair.queries] for boxes, pair in zip(prediction.boxes, pairs)])
        true = torch.cat([target.boxes[pair.targets] for target, pair in zip(targets, pairs)])
        overlap = giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true), eps=0)
        num = _objects_per_process(targets)
        return F.l1_loss(predicted, true, reduction="sum") / num, (1 - overlap).sum() / num


def softmax_focal_loss(logits: Tensor, labels: Tensor, weight: Tensor, gamma: float) -> Tensor:
    """Cross entropy in which a token counts by weight[label] (1 - p[label])^gamma, divided by the sum of the weights.

    The paper on low-rank variants of YOLOS-S trains with "focal loss" and gives no form. Here gamma 0 is exactly
    torch's weighted cross entropy, and the division is the same for every gamma.

    Args:
        logits: (..., C).
        labels: (...,) int64.
        weight: (C,).
    """
    log_probability = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    weight = weight[labels]
    focus = (1 - log_probability.exp()).clamp(min=0) ** gamma if gamma else 1.0
    return (weight * focus * -log_probability).sum() / weight.sum()


def _objects_per_process(targets: Sequence[Target]) -> float:
    """Objects of a batch, averaged over the processes; at least one."""
    counts = comm.all_gather(sum(len(target.labels) for target in targets))
    return max(sum(counts) / len(counts), 1.0)
