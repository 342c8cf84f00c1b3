"""From logits and boxes to Detectron2's Instances."""
from typing import Optional

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy

CANDIDATES = 10_000  # of an image, before duplicates are removed


def detect(
    logits: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    limit: int,
    class_of_label: Optional[Tensor] = None,
    nms_iou: Optional[float] = None,
) -> Instances:
    """The most probable pairs of a query and a class of one image, best first. Boxes are not clipped to the image.

    Args:
        logits: (Q, C); boxes: (Q, 4) cxcywh, fractions.
        size: (height, width) of the results.
        limit: how many.
        class_of_label: (C,) the class of each label, -1 for none, whose pairs are dropped afterwards; None: the same.
        nms_iou: of boxes of one label that overlap more, only the most probable is kept; None keeps all. The branches
            need it, as they answer several times for an object.
    """
    scores = logits.float().sigmoid().flatten()
    scores, order = scores.topk(min(limit if nms_iou is None else CANDIDATES, len(scores)))
    queries, labels = order // logits.shape[-1], order % logits.shape[-1]
    height, width = size
    corners = cxcywh_to_xyxy(boxes.float())[queries] * boxes.new_tensor([width, height, width, height]).float()
    if nms_iou is not None:
        kept = batched_nms(corners, scores, labels, nms_iou)[:limit]
        scores, labels, corners = scores[kept], labels[kept], corners[kept]
    if class_of_label is not None:
        labels = class_of_label[labels]
        scores, corners, labels = scores[labels >= 0], corners[labels >= 0], labels[labels >= 0]
    return Instances(size, pred_boxes=Boxes(corners), scores=scores, pred_classes=labels)
