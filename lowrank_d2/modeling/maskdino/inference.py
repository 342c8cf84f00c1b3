"""From predictions to results: instances, panoptic segments, semantic scores.

Masks are upsampled twice, from stride 4 to the canvas, and, cut to the image, to the wanted size. That is most of the
time after the network, so what will not be shown is dropped before, and the rest is done in pieces of bounded memory.
"""
from dataclasses import dataclass
from typing import Iterator, Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy
from lowrank_d2.modeling.predictions import Prediction

PIXELS_AT_ONCE = 2**21  # of mask logits in memory: 8 MiB in float32, which the processor still caches


@dataclass(frozen=True)
class InferenceOptions:
    """Which results a model gives, and how they are made from its predictions.

    Attributes:
        num_classes: logits beyond them mean "no object"; no instance is of that class, and a query that is surest of
            it makes no panoptic segment.
        instance, panoptic, semantic: the tasks.
        max_instances: (query, class) pairs in the instance result.
        mask_quality: instance scores are class score x mean probability inside the mask.
        object_threshold, overlap_threshold: see `panoptic_results`.
        temperature: panoptic and semantic scores are a softmax over probabilities / temperature; None: probabilities.
        softmax: the last logit means "no object", and semantic scores are a softmax.
        resize_first: masks are brought to the wanted size before they are combined into semantic scores.
        thing_classes: the classes of instances and of countable segments; None: all.
    """

    num_classes: int
    instance: bool = True
    panoptic: bool = False
    semantic: bool = False
    max_instances: int = 100
    mask_quality: bool = True
    object_threshold: float = 0.0
    overlap_threshold: float = 0.0
    temperature: float | None = None
    softmax: bool = False
    resize_first: bool = True
    thing_classes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Frame:
    """The sizes (height, width) that a mask passes through: padded canvas, image in it, wanted result."""

    canvas: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]

    def upsample(self, masks: Tensor) -> Tensor:
        """Mask logits (n, h, w) of the canvas at any resolution -> (n, *output)."""
        masks = resize(masks, self.canvas)[:, : self.image[0], : self.image[1]]
        return resize(masks, self.output)

    def scale_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (n, 4) cxcywh as fractions of the canvas -> x1 y1 x2 y2 in pixels of the result, not clipped."""
        height, width = (c * o / i for c, i, o in zip(self.canvas, self.image, self.output))
        return cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height] * 2)


def image_results(
    prediction: Prediction, index: int, mask_features: Tensor, frame: Frame, options: InferenceOptions
) -> dict:
    """Detectron2's result dict of image `index`: "instances", "sem_seg", "panoptic_seg", each where it is asked for.

    Args:
        prediction: the last one, of the whole batch; mask_features: (N, M, h, w).
    """
    logits, boxes = prediction.logits[index].float(), prediction.boxes[index].float()
    mask_embed, mask_features = prediction.mask_embed[index].float(), mask_features[index].float()
    probabilities = logits.sigmoid()
    results: dict = {}
    if options.semantic:
        scores = probabilities
        if options.softmax:
            scores = logits.softmax(-1)[:, :-1]
        elif options.temperature is not None:
            scores = (probabilities / options.temperature).softmax(-1)
        whole = frame if options.resize_first else Frame(frame.canvas, frame.canvas, frame.canvas)
        sem_seg = semantic_results(scores, mask_embed, mask_features, whole)
        if not options.resize_first:
            sem_seg = resize(sem_seg[:, : frame.image[0], : frame.image[1]], frame.output)
        results["sem_seg"] = sem_seg
    if options.panoptic:
        something = probabilities.argmax(-1) < options.num_classes
        results["panoptic_seg"] = panoptic_results(
            probabilities[something],
            mask_embed[something],
            mask_features,
            frame,
            object_threshold=options.object_threshold,
            overlap_threshold=options.overlap_threshold,
            temperature=options.temperature,
            thing_classes=options.thing_classes,
        )
    if options.instance:
        results["instances"] = instance_results(
            logits[:, : options.num_classes],
            boxes,
            mask_embed,
            mask_features,
            frame,
            max_instances=options.max_instances,
            mask_quality=options.mask_quality,
            thing_classes=options.thing_classes,
        )
    return results


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, (n, h, w) -> (n, *size)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def upsampled_pieces(mask_embed: Tensor, mask_features: Tensor, frame: Frame) -> Iterator[tuple[slice, Tensor]]:
    """Forms and upsamples masks a few at a time.

    Args:
        mask_embed: (n, M).
        mask_features: (M, h, w).

    Yields:
        which masks, and their logits (piece, *frame.output).
    """
    largest = max(h * w for h, w in (frame.canvas, frame.output))
    step = max(1, PIXELS_AT_ONCE // largest)
    together = max(step, PIXELS_AT_ONCE // mask_features[0].numel())  # as every product reads all features
    for first in range(0, len(mask_embed), together):
        masks = torch.einsum("qm,mhw->qhw", mask_embed[first : first + together], mask_features)
        for start in range(0, len(masks), step):
            piece = masks[start : start + step]
            yield slice(first + start, first + start + len(piece)), frame.upsample(piece)


def instance_results(
    logits: Tensor,
    boxes: Tensor,
    mask_embed: Tensor,
    mask_features: Tensor,
    frame: Frame,
    *,
    max_instances: int,
    mask_quality: bool,
    thing_classes: Sequence[int] | None = None,
) -> Instances:
    """The best (query, class) pairs of one image; a query may appear with several classes.

    Args:
        logits: (Q, C); boxes: (Q, 4) cxcywh of the canvas; mask_embed: (Q, M); mask_features: (M, h, w).
        max_instances: how many pairs.
        mask_quality: multiply the class score by the mean probability of the mask's own pixels.
        thing_classes: keep only these of the best pairs.

    Returns:
        Instances of the wanted size with scores (n,), pred_classes (n,) int64, pred_boxes (Boxes, not clipped) and
        pred_masks (n, height, width) bool.
    """
    num_classes = logits.shape[1]
    scores, pairs = logits.sigmoid().flatten().topk(min(max_instances, logits.numel()))
    if thing_classes is not None:
        keep = torch.isin(pairs % num_classes, pairs.new_tensor(list(thing_classes)))
        scores, pairs = scores[keep], pairs[keep]
    queries, position = torch.unique(pairs // num_classes, return_inverse=True)

    masks = torch.zeros((len(queries), *frame.output), dtype=torch.bool, device=logits.device)
    quality = torch.ones(len(queries), device=logits.device)
    for piece, mask_logits in upsampled_pieces(mask_embed[queries], mask_features, frame):
        torch.gt(mask_logits, 0, out=masks[piece])
        if mask_quality:
            quality[piece] = mean_inside(mask_logits, masks[piece])

    result = Instances(frame.output)
    result.pred_masks = masks[position]
    result.pred_boxes = Boxes(frame.scale_boxes(boxes[queries])[position])
    result.scores = scores * quality[position]
    result.pred_classes = pairs % num_classes
    return result


def mean_inside(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Mean probability of each mask's own pixels, (n, H, W) both -> (n,); 0 for an empty mask."""
    # Several times as fast as a product with the masks. Logits are compared, since the sigmoid of the smallest positive
    # ones is 0.5, too: these pixels are inside.
    inside = F.threshold(mask_logits, 0.0, -torch.inf).sigmoid_()
    return inside.flatten(1).sum(1) / (masks.flatten(1).sum(1, dtype=inside.dtype) + 1e-6)


def semantic_results(class_scores: Tensor, mask_embed: Tensor, mask_features: Tensor, frame: Frame) -> Tensor:
    """Scores of every class at every pixel of one image: masks' probabilities weighted by (Q, C) class scores.

    Returns:
        (C, *frame.output)
    """
    total = class_scores.new_zeros((class_scores.shape[1], *frame.output))
    for piece, mask_logits in upsampled_pieces(mask_embed, mask_features, frame):
        total += torch.einsum("qc,qhw->chw", class_scores[piece], mask_logits.sigmoid_())
    return total


def panoptic_results(
    probabilities: Tensor,
    mask_embed: Tensor,
    mask_features: Tensor,
    frame: Frame,
    *,
    object_threshold: float,
    overlap_threshold: float,
    temperature: float | None,
    thing_classes: Sequence[int],
) -> tuple[Tensor, list[dict]]:
    """One segment id per pixel: every pixel goes to the query with the largest score x mask probability.

    Args:
        probabilities: (Q, C) sigmoid class probabilities.
        object_threshold: queries take part above this probability.
        overlap_threshold: a segment is dropped if others took more than the rest of its mask.
        temperature: if given, score and class are those of a softmax over the probabilities / temperature.

    Returns:
        (height, width) int32, 0 where nothing is, and one dict per segment with id, isthing, category_id.
    """
    scores, labels = probabilities.max(-1)
    keep = (scores > object_threshold).nonzero()[:, 0]
    if temperature is not None:
        scores, labels = (probabilities / temperature).softmax(-1).max(-1)
    winner, own_areas = _compete(scores[keep], mask_embed[keep], mask_features, frame)
    areas = torch.bincount(winner.index[winner.index >= 0], minlength=len(keep))
    return _segments(
        winner, areas.tolist(), own_areas.tolist(), labels[keep].tolist(), overlap_threshold, set(thing_classes)
    )


@dataclass(frozen=True)
class _Winner:
    """Per pixel: which query won (-1: none took part), and whether the pixel is inside that query's mask."""

    index: Tensor
    inside: Tensor


def _compete(scores: Tensor, mask_embed: Tensor, mask_features: Tensor, frame: Frame) -> tuple[_Winner, Tensor]:
    """The winning query of every pixel, and the area (n,) of every query's mask."""
    best = scores.new_full(frame.output, -1.0)
    index = torch.full(frame.output, -1, dtype=torch.long, device=scores.device)
    inside = torch.zeros(frame.output, dtype=torch.bool, device=scores.device)
    areas = torch.zeros(len(scores), device=scores.device)
    for piece, mask_logits in upsampled_pieces(mask_embed, mask_features, frame):
        masks = mask_logits.sigmoid_()
        areas[piece] = (masks >= 0.5).flatten(1).sum(1, dtype=masks.dtype)
        value, position = (scores[piece, None, None] * masks).max(0)
        better = value > best
        best = torch.where(better, value, best)
        index = torch.where(better, position + piece.start, index)
        inside = torch.where(better, masks.gather(0, position[None])[0] >= 0.5, inside)
    return _Winner(index, inside), areas


def _segments(
    winner: _Winner,
    areas: Sequence[int],
    own_areas: Sequence[int],
    labels: Sequence[int],
    overlap_threshold: float,
    things: set[int],
) -> tuple[Tensor, list[dict]]:
    """Numbers the queries that keep enough of their mask; queries of one stuff class share a number."""
    panoptic = torch.zeros_like(winner.index, dtype=torch.int32)
    segments: list[dict] = []
    stuff_ids: dict[int, int] = {}
    for query, (area, own_area, label) in enumerate(zip(areas, own_areas, labels)):
        mask = (winner.index == query) & winner.inside
        if area == 0 or own_area == 0 or area / own_area < overlap_threshold or not mask.any():
            continue
        if label in stuff_ids:
            panoptic[mask] = stuff_ids[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in things, "category_id": label})
        panoptic[mask] = len(segments)
        if label not in things:
            stuff_ids[label] = len(segments)
    return panoptic, segments
