"""Drawing the frames of a video so that an instance keeps its colour."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.structures import Instances

from .colormap import random_color, random_colors
from .vis_masks import _PanopticPrediction
from .visualizer import ColorMode, Visualizer, _create_text_labels

_MAX_ID_COLORS = 74  # as many as the colour map has


@dataclass(slots=True)
class _DetectedInstance:
    """What is known of an instance of an earlier frame."""

    label: int | None
    bbox: np.ndarray | None  # x0, y0, x1, y1
    mask_rle: dict | None
    color: tuple | None
    ttl: int  # frames it is remembered without being seen


class VideoVisualizer:
    """Frame after frame, with colours kept by matching instances to those of the frames before.

    Args:
        metadata: as for Visualizer.
        instance_mode: IMAGE or IMAGE_BW.
    """

    _TTL = 8

    def __init__(self, metadata, instance_mode=ColorMode.IMAGE):
        assert instance_mode in (ColorMode.IMAGE, ColorMode.IMAGE_BW), f"Colours cannot be kept in {instance_mode}."
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._old_instances: list[_DetectedInstance] = []
        self._colors_by_id: dict[int, np.ndarray] = {}

    def draw_instance_predictions(self, frame, predictions: Instances):
        """Draw one frame.

        Args:
            frame: (H, W, 3) RGB in 0..255.
            predictions: as for Visualizer; with a field ID, colours follow it, otherwise overlaps between frames.

        Returns:
            VisImage.
        """
        visualizer = Visualizer(frame, self.metadata)
        count = len(predictions)
        if count == 0:
            return visualizer.output

        def field(name: str):
            return predictions.get(name) if predictions.has(name) else None

        boxes = predictions.pred_boxes.tensor.numpy() if predictions.has("pred_boxes") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        masks = np.asarray(predictions.pred_masks) if predictions.has("pred_masks") else None
        if predictions.has("COLOR"):
            colors = predictions.COLOR
        elif predictions.has("ID"):
            colors = self._assign_colors_by_id(predictions)
        else:
            detected = [
                _DetectedInstance(
                    label=None if classes is None else classes[i],
                    bbox=None if boxes is None else boxes[i],
                    mask_rle=None if masks is None else mask_util.encode(np.asfortranarray(masks[i], dtype=np.uint8)),
                    color=None,
                    ttl=self._TTL,
                )
                for i in range(count)
            ]
            colors = self._assign_colors(detected)

        if self._instance_mode == ColorMode.IMAGE_BW:
            covered = None if masks is None else masks.any(axis=0)
            visualizer.output.reset_image(visualizer._create_grayscale_image(covered))
        labels = _create_text_labels(classes, field("scores"), self.metadata.get("thing_classes"))
        return visualizer.overlay_instances(
            boxes=None if masks is not None else boxes,  # boxes beside masks make a video restless
            masks=masks,
            labels=labels,
            keypoints=field("pred_keypoints"),
            assigned_colors=colors,
            alpha=0.3 if self._instance_mode == ColorMode.IMAGE_BW else 0.5,
        )

    def draw_sem_seg(self, frame, sem_seg, area_threshold=None):
        """Draw one frame's (H, W) label map."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(self, frame, panoptic_seg, segments_info, area_threshold=None, alpha=0.5):
        """Draw one frame's panoptic segmentation, as Visualizer.draw_panoptic_seg; things keep their colours."""
        visualizer = Visualizer(frame, self.metadata)
        prediction = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image(prediction.non_empty_mask()))
        things = list(prediction.instance_masks())
        stuff = [info for _, info in prediction.semantic_masks()]
        visualizer.draw_panoptic_seg(panoptic_seg, stuff, area_threshold=area_threshold, alpha=alpha)
        if not things:
            return visualizer.output

        classes = [info["category_id"] for _, info in things]
        detected = [
            _DetectedInstance(
                label=category,
                bbox=None,
                mask_rle=mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)),
                color=None,
                ttl=self._TTL,
            )
            for (mask, _), category in zip(things, classes)
        ]
        return visualizer.overlay_instances(
            masks=[mask for mask, _ in things],
            labels=[self.metadata.thing_classes[category] for category in classes],
            assigned_colors=self._assign_colors(detected),
            alpha=alpha,
        )

    def _overlaps(self, instances: list[_DetectedInstance]) -> tuple[np.ndarray, float]:
        """(old, new) IoU, 0 between different classes, and the least one that makes a match."""
        shape = (len(self._old_instances), len(instances))
        use_boxes = instances[0].bbox is not None
        if 0 in shape or (not use_boxes and instances[0].mask_rle is None):
            return np.zeros(shape), 1.0
        everyone = [self._old_instances, instances]
        if use_boxes:
            corners = [np.array([i.bbox for i in group], dtype=float).reshape(-1, 4) for group in everyone]
            sides = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1) for boxes in corners]
            ious = mask_util.iou(*sides, [False] * shape[1])
        else:
            ious = mask_util.iou(*([i.mask_rle for i in group] for group in everyone), [False] * shape[1])
        same = np.array([[old.label == new.label for new in instances] for old in self._old_instances])
        return np.where(same, ious, 0.0), 0.6 if use_boxes else 0.5

    def _assign_colors(self, instances: list[_DetectedInstance]) -> list:
        """Give every instance the colour of the old one it overlaps most, or a new one; remember them all."""
        ious, threshold = self._overlaps(instances)
        unseen = []
        for old, row in zip(self._old_instances, ious):
            best = int(row.argmax())
            if row[best] > threshold and instances[best].color is None:
                instances[best].color = old.color
            else:
                unseen.append(old)
        for old in unseen:
            old.ttl -= 1
        for instance in instances:
            if instance.color is None:
                instance.color = random_color(rgb=True, maximum=1)
        self._old_instances = instances + [old for old in unseen if old.ttl > 0]
        return [instance.color for instance in instances]

    def _assign_colors_by_id(self, instances: Instances) -> list:
        """One colour an ID, different ones as long as there are any left."""
        ids = torch.as_tensor(instances.ID).tolist()
        for instance_id in ids:
            if instance_id not in self._colors_by_id:
                if not self._colors_by_id or len(self._colors_by_id) % _MAX_ID_COLORS == 0:
                    self._unused = random_colors(_MAX_ID_COLORS, rgb=True, maximum=1)
                self._colors_by_id[instance_id] = self._unused.pop()
        return [self._colors_by_id[instance_id] for instance_id in ids]
