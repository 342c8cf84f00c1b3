"""From logits and boxes to Detectron2's Instances; what to do with boxes that found the same object."""
from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy
from yolos.fusion import fuse_boxes

DUPLICATES = ("keep", "nms", "wbf")
WBF_SCORES = ("max", "avg")


@dataclass(frozen=True)
class DecodeOptions:
    """MODEL.YOLOS.TEST, whose comments say what each value means, and TEST.DETECTIONS_PER_IMAGE."""

    score_threshold: float = 0.0
    duplicates: str = "keep"
    duplicates_iou: float = 0.55
    wbf_score: str = "max"
    max_detections: int = 100


def decode(
    logits: Tensor, boxes: Tensor, class_of_label: Tensor, size: tuple[int, int], extent: tuple[float, float],
    options: DecodeOptions,
) -> Instances:
    """The instances of one image, best first.

    A token answers with its most probable label. Labels that no class of the data has are dropped after that choice,
    so that the scores are those of the original and of transformers. Boxes are not clipped to the image, as there.

    Args:
        logits: (Q, L + 1), "no object" last.
        boxes: (Q, 4) cxcywh fractions.
        class_of_label: (L,) class of each label, -1 for none.
        size: (height, width) of the image to which the results belong.
        extent: the part of `size`, in its pixels, of which the boxes are fractions.

    Returns:
        pred_boxes in pixels of `size`, scores in [0, 1], pred_classes.
    """
    scores, labels = logits.float().softmax(-1)[:, :-1].max(-1)
    classes = class_of_label[labels]
    height, width = extent
    boxes = cxcywh_to_xyxy(boxes.float()) * boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    kept = (classes >= 0) & (scores > options.score_threshold)
    boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    if options.duplicates == "nms":
        kept = batched_nms(boxes, scores, classes, options.duplicates_iou)
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    elif options.duplicates == "wbf":
        boxes, scores, classes = _fused(boxes, scores, classes, size, options)
    order = scores.argsort(descending=True, stable=True)[: options.max_detections]
    return Instances(size, pred_boxes=Boxes(boxes[order]), scores=scores[order], pred_classes=classes[order])


def _fused(
    boxes: Tensor, scores: Tensor, classes: Tensor, size: tuple[int, int], options: DecodeOptions
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = size
    scale = boxes.new_tensor([width, height, width, height])
    # Clusters grow one box at a time: on a GPU that would be thousands of kernels.
    fused = fuse_boxes((boxes / scale).cpu(), scores.cpu(), classes.cpu(), options.duplicates_iou, options.wbf_score)
    boxes, scores, classes = (tensor.to(boxes.device) for tensor in fused)
    return boxes * scale, scores, classes
