"""Boxes as the DETR family writes them: cxcywh fractions of the canvas, refined before a sigmoid, compared by GIoU."""
import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) center and size -> (..., 4) left, top, right, bottom."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat((center - 0.5 * size, center + 0.5 * size), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> (..., 4) center and size."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of x clamped to [0, 1], with numerator and denominator each at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes (..., 4), broadcast over the leading dimensions; 0 for two without area."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised intersection over union of xyxy boxes, broadcast over the leading dimensions (arXiv:1902.09630).

    Args:
        a, b: (..., 4) xyxy. Pairwise: `giou(a[:, None], b[None])`.
        eps: added to both denominators, as the Mask DINO code does; boxes without area then give finite values.

    Returns:
        (...) in [-1, 1].
    """
    overlap, union = _overlap_and_union(a, b)
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    overlap = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return overlap, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
