"""Weighted box fusion (Solovyev et al., arXiv:1910.13302) of one model's own boxes."""
import torch
from torch import Tensor


def fuse_boxes(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou: float, score: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces boxes of one class that overlap by their mean, weighted by score.

    Boxes are taken from best to worst. Each joins the cluster of its class whose mean it overlaps most, if by more than
    `iou`, and moves that mean; else it opens a cluster.

    Args:
        boxes: (n, 4) xyxy, fractions of the image. Swapped corners are put right, what lies outside is cut off, and
            boxes without area are dropped.
        scores: (n,).
        classes: (n,) int64.
        iou: least intersection over union of a box and the mean that it joins.
        score: of a fused box: "max" or "avg" of its members. With one model "avg" ranks an object that was found twice
            behind one that was found once.

    Returns:
        boxes (m, 4), scores (m,), classes (m,), grouped by class.
    """
    low, high = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    boxes = torch.cat((low, high), dim=1).clamp(0, 1)
    full = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, classes = boxes[full], scores[full], classes[full]
    parts = []
    for label in classes.unique():
        own = classes == label
        means, values = _fuse_class(boxes[own], scores[own], iou, score)
        parts.append((means, values, label.expand(len(values))))
    if not parts:
        return boxes, scores, classes
    means, values, labels = zip(*parts)
    return torch.cat(means), torch.cat(values), torch.cat(labels)


def _fuse_class(boxes: Tensor, scores: Tensor, iou: float, score: str) -> tuple[Tensor, Tensor]:
    means = boxes.new_zeros((0, 4))
    clusters: list[list[int]] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        overlaps = _iou(boxes[index], means)
        best = int(overlaps.argmax()) if len(clusters) else -1
        if best < 0 or overlaps[best] <= iou:
            clusters.append([index])
            means = torch.cat((means, boxes[index : index + 1]))
            continue
        members = clusters[best] = clusters[best] + [index]
        means[best] = (scores[members, None] * boxes[members]).sum(0) / scores[members].sum()
    reduce = torch.max if score == "max" else torch.mean
    return means, torch.stack([reduce(scores[members]) for members in clusters])


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """(4,), (k, 4) -> (k,)"""
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    common = sides.clamp(min=0).prod(-1)
    areas = (others[:, 2:] - others[:, :2]).prod(-1)
    return common / ((box[2:] - box[:2]).prod() + areas - common)
