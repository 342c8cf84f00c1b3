"""Non-maximum suppression."""
import numpy as np
import torch

from detectron2._lite import refused


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Keep the best box, drop those that overlap it by more than the threshold, and so on with the rest.

    `boxes` are (N, 4) x0 y0 x1 y1, `scores` (N,); equal scores keep their order. Returns the int64 indices of the kept
    boxes, best first.
    """
    order = scores.sort(descending=True, stable=True).indices
    # Each decision depends on those before it: thousands of tiny steps, for which numpy beats every device.
    kept = _suppress(boxes[order].detach().float().cpu().numpy(), iou_threshold)
    return order[torch.from_numpy(kept).to(order.device)]


def _suppress(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Positions of the boxes that survive, of boxes sorted from best to worst."""
    low, high = boxes[:, :2], boxes[:, 2:]
    areas = (high - low).prod(axis=1)
    alive = np.ones(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        rest = slice(index + 1, None)
        sides = np.minimum(high[index], high[rest]) - np.maximum(low[index], low[rest])
        common = np.maximum(sides, 0).prod(axis=1)
        # Compared without dividing, boxes without area suppress nobody.
        alive[rest] &= common <= iou_threshold * (areas[index] + areas[rest] - common)
    return alive.nonzero()[0]


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """:func:`nms` within each class: boxes of different classes never suppress each other.

    `idxs` are the (N,) int64 classes or levels of the boxes. Returns the int64 indices of the kept boxes, best first.
    """
    assert boxes.shape[-1] == 4, f"Boxes have 4 coordinates, not {boxes.shape[-1]}."
    kept = [torch.empty(0, dtype=torch.int64, device=boxes.device)]
    for label in idxs.unique():
        members = (idxs == label).nonzero().squeeze(1)
        kept.append(members[nms(boxes[members], scores[members], iou_threshold)])
    kept = torch.cat(kept).sort().values  # so that equal scores stay in the order of the input
    return kept[scores[kept].sort(descending=True, stable=True).indices]


nms_rotated = refused("nms_rotated", __name__)
batched_nms_rotated = refused("batched_nms_rotated", __name__)
