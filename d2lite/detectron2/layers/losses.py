"""Regression losses on boxes that go beyond the overlap (arXiv:1911.08287)."""
import math

import torch


def diou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7) -> torch.Tensor:
    """Distance-IoU loss of matched boxes: 1 - IoU + squared distance of centres / squared diagonal of their hull.

    Args:
        boxes1, boxes2: (..., 4) x0 y0 x1 y1, with x0 <= x1 and y0 <= y1.
        reduction: "none", "mean" (0 for no boxes) or "sum".
        eps: keeps the divisions finite.
    """
    iou, distance = _iou_and_distance(boxes1, boxes2, eps)
    return _reduce(1 - iou + distance, reduction)


def ciou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7) -> torch.Tensor:
    """Complete-IoU loss: the distance-IoU loss plus how much the aspect ratios differ; arguments as there."""
    iou, distance = _iou_and_distance(boxes1, boxes2, eps)
    angles = [torch.atan((box[..., 2] - box[..., 0]) / (box[..., 3] - box[..., 1])) for box in (boxes1, boxes2)]
    aspect = 4 / math.pi**2 * (angles[1] - angles[0]) ** 2
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + eps)
    return _reduce(1 - iou + distance + weight * aspect, reduction)


def _iou_and_distance(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float):
    """IoU, and the centres' squared distance as a fraction of the hull's squared diagonal."""
    for boxes in (boxes1, boxes2):
        assert (boxes[..., 2:] >= boxes[..., :2]).all(), "A box ends left of or above its beginning."
    low1, high1, low2, high2 = boxes1[..., :2], boxes1[..., 2:], boxes2[..., :2], boxes2[..., 2:]
    common = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(dim=-1)
    union = (high1 - low1).prod(dim=-1) + (high2 - low2).prod(dim=-1) - common
    hull = torch.maximum(high1, high2) - torch.minimum(low1, low2)
    centers_apart = (low1 + high1 - low2 - high2) / 2
    distance = centers_apart.square().sum(dim=-1) / (hull.square().sum(dim=-1) + eps)
    return common / (union + eps), distance


def _reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else loss.sum()
    return loss.sum() if reduction == "sum" else loss
