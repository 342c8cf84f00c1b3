"""From predictions to results. Masks grow bilinearly to the canvas, and from there by a smooth filter to the wanted size."""
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from lowrank_d2.modeling.maskdino.inference import (
    Frame,
    mean_inside,
    panoptic_results,
    resize,
    semantic_results,
    upsampled_pieces,
)
from lowrank_d2.modeling.predictions import Predictions


@dataclass(frozen=True)
class InferenceOptions:
    """Which results a model gives.

    Attributes:
        instance, panoptic, semantic: the tasks.
        max_instances: (query, class) pairs in the instance result.
        object_threshold, overlap_threshold: see `panoptic_results`.
        resize_first: masks are brought to the wanted size before they are combined into semantic scores.
        thing_classes: the classes of instances and of countable segments; None: all.
    """

    instance: bool = True
    panoptic: bool = False
    semantic: bool = False
    max_instances: int = 100
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    resize_first: bool = True
    thing_classes: Optional[tuple[int, ...]] = None


class SmoothFrame(Frame):
    """A frame whose last step, from the image's size to the wanted one, is bicubic with antialiasing."""

    def upsample(self, masks: Tensor) -> Tensor:
        """Mask logits (n, h, w) of the canvas at any resolution -> (n, *output)."""
        return self.finish(resize(masks, self.canvas))

    def finish(self, maps: Tensor) -> Tensor:
        """(n, *canvas) -> (n, *output)."""
        maps = maps[:, : self.image[0], : self.image[1]]
        if self.image == self.output:
            return maps
        return F.interpolate(maps[None], size=self.output, mode="bicubic", align_corners=False, antialias=True)[0]


def image_results(predictions: Predictions, index: int, frame: SmoothFrame, options: InferenceOptions) -> dict[str, Any]:
    """Detectron2's result dict of image `index`: "instances", "sem_seg", "panoptic_seg", each where it is asked for."""
    probabilities = predictions.last.logits[index].float().softmax(-1)
    mask_embed, mask_features = predictions.last.mask_embed[index].float(), predictions.mask_features[index].float()
    classes = probabilities[:, :-1]
    results: dict[str, Any] = {}
    if options.semantic:
        if options.resize_first:
            results["sem_seg"] = semantic_results(classes, mask_embed, mask_features, frame)
        else:
            whole = SmoothFrame(frame.canvas, frame.canvas, frame.canvas)
            results["sem_seg"] = frame.finish(semantic_results(classes, mask_embed, mask_features, whole))
    if options.panoptic:
        something = probabilities.argmax(-1) < classes.shape[1]
        results["panoptic_seg"] = panoptic_results(
            classes[something],
            mask_embed[something],
            mask_features,
            frame,
            object_threshold=options.object_threshold,
            overlap_threshold=options.overlap_threshold,
            temperature=None,
            thing_classes=options.thing_classes,
        )
    if options.instance:
        results["instances"] = instance_results(classes, mask_embed, mask_features, frame, options)
    return results


def instance_results(
    scores: Tensor, mask_embed: Tensor, mask_features: Tensor, frame: SmoothFrame, options: InferenceOptions
) -> Instances:
    """The best (query, class) pairs of one image; a query may appear with several classes.

    Args:
        scores: (Q, K) class probabilities; mask_embed: (Q, M); mask_features: (M, h, w).

    Returns:
        Instances of the wanted size with scores (n,), times the mean probability of the mask's own pixels, pred_classes
        (n,) int64, pred_masks (n, height, width) bool, and pred_boxes (Boxes), tight around the masks, zeros around
        nothing.
    """
    num_classes = scores.shape[1]
    best, pairs = scores.flatten().topk(min(options.max_instances, scores.numel()))
    if options.thing_classes is not None:
        kept = torch.isin(pairs % num_classes, pairs.new_tensor(options.thing_classes))
        best, pairs = best[kept], pairs[kept]
    queries, position = torch.unique(pairs // num_classes, return_inverse=True)

    masks = torch.zeros((len(queries), *frame.output), dtype=torch.bool, device=scores.device)
    quality = torch.ones(len(queries), device=scores.device)
    for piece, mask_logits in upsampled_pieces(mask_embed[queries], mask_features, frame):
        torch.gt(mask_logits, 0, out=masks[piece])
        quality[piece] = mean_inside(mask_logits, masks[piece])

    return Instances(
        frame.output,
        pred_masks=masks[position],
        pred_boxes=BitMasks(masks).get_bounding_boxes()[position],
        scores=best * quality[position],
        pred_classes=pairs % num_classes,
    )
