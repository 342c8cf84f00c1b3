"""The set loss of AdaMixer: every stage is matched, and compared with the objects, by itself."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from lors.stage import StageOutput
from lowrank_d2.layers.boxes import giou
from lowrank_d2.modeling.matcher import Pairs, assign, focal_cost


@dataclass(frozen=True)
class Objects:
    """The truth of one image.

    Attributes:
        labels: (n,) int64.
        boxes: (n, 4) corners in pixels of the image as the model sees it.
        extent: (4,) width, height, width, height of that image without padding.
    """

    labels: Tensor
    boxes: Tensor
    extent: Tensor


@dataclass(frozen=True)
class Weights:
    """Of the three terms, in the costs of the matching or in the losses: focal, L1 and GIoU."""

    label: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


class AdaMixerCriterion:
    """Compares the outputs of all stages with the truth.

    Args:
        loss, cost: weights of the terms.
        finite_empty_batch: a batch without any object counts as one object. Without it the class loss of such a batch
            is infinite, since it is divided by the number of matched queries, as in the authors' code.
    """

    def __init__(self, *, loss: Weights, cost: Weights, finite_empty_batch: bool):
        self.loss = loss
        self.cost = cost
        self.finite_empty_batch = finite_empty_batch

    def __call__(
        self, outputs: Sequence[StageOutput], truth: Sequence[Objects]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """In float32 also under autocast.

        Args:
            outputs: of S stages, for N images.
            truth: of the N images.

        Returns:
            the weighted losses "stage0_loss_cls", "stage0_loss_bbox", "stage0_loss_iou", "stage1_loss_cls" and so on,
            scalars; and "stage0_pos_acc" and so on, the percentage of matched queries with the right class.

        Raises:
            ValueError: a prediction is not a number.
        """
        with torch.autocast(outputs[0].logits.device.type, enabled=False):
            pairs = self.match(outputs, truth)
            num = self._num_matched(pairs["stage0"], outputs[0].logits.device)
            losses, accuracies = {}, {}
            for name, output in zip(pairs, outputs):
                own = self._losses(output, truth, pairs[name], num)
                losses |= {f"{name}_{key}": value for key, value in own.items()}
                accuracies[f"{name}_pos_acc"] = _accuracy(output.logits, truth, pairs[name])
            return losses, accuracies

    @torch.no_grad()
    def match(self, outputs: Sequence[StageOutput], truth: Sequence[Objects]) -> dict[str, list[Pairs]]:
        """For "stage0", "stage1", ... the pairs of queries and objects of every image."""
        costs = [self.costs(outputs, image, objects) for image, objects in enumerate(truth)]
        return assign([f"stage{i}" for i in range(len(outputs))], costs)

    @torch.no_grad()
    def costs(self, outputs: Sequence[StageOutput], image: int, objects: Objects) -> Tensor:
        """(S, Q, n): what assigning a query to an object of an image costs."""
        logits = torch.stack([output.logits[image] for output in outputs]).float()
        boxes = torch.stack([output.boxes[image] for output in outputs])
        # Corners as fractions of the image, not centre and size: the default of the authors' library.
        distance = ((boxes / objects.extent)[:, :, None] - objects.boxes / objects.extent).abs().sum(-1)
        overlap = giou(boxes[:, :, None], objects.boxes, eps=0)
        label = focal_cost(logits, objects.labels, eps=1e-12)
        return self.cost.label * label + self.cost.l1 * distance - self.cost.giou * overlap

    def _losses(
        self, output: StageOutput, truth: Sequence[Objects], pairs: Sequence[Pairs], num: Tensor
    ) -> dict[str, Tensor]:
        logits = output.logits.float()
        one_hot = torch.zeros_like(logits)
        for row, pair, objects in zip(one_hot, pairs, truth):
            row[pair.queries, objects.labels[pair.targets]] = 1
        label = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="sum") / num
        matched = list(zip(output.boxes, pairs, truth))
        predicted = torch.cat([boxes[pair.queries] for boxes, pair, _ in matched])
        true = torch.cat([objects.boxes[pair.targets] for _, pair, objects in matched])
        extent = torch.cat([objects.extent.expand(len(pair.queries), -1) for _, pair, objects in matched])
        if len(predicted):
            distance = F.l1_loss(predicted / extent, true / extent, reduction="sum") / num
            overlap = (1 - giou(predicted, true, eps=0)).sum() / num
        else:  # by an empty sum the heads get a gradient all the same, of zeros
            distance = overlap = output.boxes.sum() * 0
        return {
            "loss_cls": self.loss.label * label,
            "loss_bbox": self.loss.l1 * distance,
            "loss_iou": self.loss.giou * overlap,
        }

    def _num_matched(self, pairs: Sequence[Pairs], device: torch.device) -> Tensor:
        """Matched queries of a batch, averaged over the processes."""
        num, processes = torch.tensor(float(sum(len(pair.queries) for pair in pairs)), device=device), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(num)
            processes = dist.get_world_size()
        return (num.clamp(min=1) if self.finite_empty_batch else num) / processes


@torch.no_grad()
def _accuracy(logits: Tensor, truth: Sequence[Objects], pairs: Sequence[Pairs]) -> Tensor:
    """Percentage of the matched queries whose largest logit is that of their object; 0 when none is matched."""
    right = [logits[i, pair.queries].argmax(-1) == truth[i].labels[pair.targets] for i, pair in enumerate(pairs)]
    right = torch.cat(right).float()
    return 100 * right.sum() / max(len(right), 1)
