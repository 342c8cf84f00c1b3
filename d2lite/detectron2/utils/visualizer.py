"""Drawing ground truth and predictions on images, with matplotlib.

Colours are RGB in [0, 1], or anything that matplotlib takes. Coordinates are pixels of the input image, whatever the
scale of the output.
"""
import colorsys
import math
from enum import Enum, unique

import cv2
import matplotlib.colors as mplc
import matplotlib.figure as mplfigure
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Rectangle
from PIL import Image

from detectron2._lite import refused
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .colormap import random_color
from .vis_masks import GenericMask, _PanopticPrediction

_SMALL_OBJECT_AREA_THRESH = 1000  # pixels; below it the label goes beside the box
_LARGE_MASK_AREA_THRESH = 120000  # pixels; above it every connected part of a mask gets a label
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_RED = (1.0, 0, 0)
_KEYPOINT_THRESHOLD = 0.05


@unique
class ColorMode(Enum):
    """How instances are coloured."""

    IMAGE = 0  # every instance a random colour, little opaque
    SEGMENTATION = 1  # instances of a class similar colours, after the metadata's thing_colors, quite opaque
    IMAGE_BW = 2  # as IMAGE, and everything that belongs to no instance grey


def _unit(color):
    """A colour of the metadata, 0..255, in [0, 1]."""
    return [value / 255 for value in color]


def _create_text_labels(classes, scores, class_names, is_crowd=None) -> list[str] | None:
    """ "name 93%", "name|crowd": of what there is. Without names the class's number; None if there is nothing."""
    parts = []
    if classes is not None:
        parts.append([class_names[i] if class_names is not None and len(class_names) else str(i) for i in classes])
    if scores is not None:
        parts.append([f"{score * 100:.0f}%" for score in scores])
    labels = [" ".join(label) for label in zip(*parts)]
    if is_crowd is not None:
        labels = [f"{label}|crowd" if crowd else label for label, crowd in zip(labels, is_crowd)]
    return labels if parts else None


class VisImage:
    """An image (H, W, 3), RGB in 0..255, that is drawn on; the output is int(scale * W) x int(scale * H)."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = mplfigure.Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        pixels = np.array([int(self.width * self.scale), int(self.height * self.scale)])
        # matplotlib truncates to whole pixels; a little more keeps rounding from losing one.
        size = pixels + 1e-2
        self.fig.set_size_inches(*size / self.dpi)
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes([0.0, 0.0, 1.0, 1.0], xlim=(0, self.width), ylim=(self.height, 0))
        self.ax.axis("off")
        # Images leave that little free, or else they would be resampled by it.
        right, top = pixels[0] / size[0], 1 - pixels[1] / size[1]
        self._extent = (0, self.width * right, self.height, self.height * top)
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Paint an image over everything drawn before."""
        self.img = img.astype(np.uint8)
        self._lay(self.img)

    def _lay(self, pixels: np.ndarray) -> None:
        """Lay (H, W, 3 or 4) pixels over what is there."""
        self.ax.imshow(pixels, extent=self._extent, interpolation="nearest", aspect="auto")
        self.ax.set(xlim=(0, self.width), ylim=(self.height, 0))  # imshow has changed them

    def save(self, filepath: str) -> None:
        """Write a file; its extension decides about the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        buffer, (width, height) = self.canvas.print_to_buffer()
        rgba = np.frombuffer(buffer, dtype=np.uint8).reshape(height, width, 4)
        return rgba[:, :, :3].copy()


class Visualizer:
    """Draws boxes, masks, keypoints and labels.

    Every `draw_*` and `overlay_*` returns the same VisImage: `Visualizer(img).draw_dataset_dict(d).get_image()`. The
    image is (H, W, 3) RGB in 0..255; whatever classes, colours and names the metadata lack is done without.
    """

    def __init__(self, img_rgb, metadata=None, scale=1.0, instance_mode=ColorMode.IMAGE, font_size_scale=1.0):
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        readable = max(math.sqrt(self.output.height * self.output.width) // 90, 10 // scale)
        self._default_font_size = readable * font_size_scale
        self._instance_mode, self.keypoint_threshold = instance_mode, _KEYPOINT_THRESHOLD

    def _class_colors(self, classes, jittering: bool = True):
        """The metadata's colours of classes; None where it has none."""
        colors = self.metadata.get("thing_colors")
        if not colors:
            return None
        of_class = [_unit(colors[i]) for i in classes]
        return [self._jitter(color) for color in of_class] if jittering else of_class

    def draw_instance_predictions(self, predictions, jittering: bool = True) -> VisImage:
        """Draw what a detector gives, Instances on the CPU with any of pred_boxes, pred_classes, scores, pred_masks
        (N, H, W), pred_keypoints (N, K, 3); `jittering` varies the colours of a class in SEGMENTATION mode."""

        def field(name: str):
            return predictions.get(name) if predictions.has(name) else None

        classes, masks = field("pred_classes"), field("pred_masks")
        classes = None if classes is None else classes.tolist()
        colors, alpha = None, 0.5
        if self._instance_mode == ColorMode.SEGMENTATION and classes is not None and self.metadata.get("thing_colors"):
            colors, alpha = self._class_colors(classes, jittering), 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            covered = None if masks is None else np.asarray(masks).any(axis=0)
            self.output.reset_image(self._create_grayscale_image(covered))
            alpha = 0.3
        return self.overlay_instances(
            boxes=field("pred_boxes"), masks=masks, keypoints=field("pred_keypoints"),
            labels=_create_text_labels(classes, field("scores"), self.metadata.get("thing_classes")),
            assigned_colors=colors, alpha=alpha,
        )

    def draw_sem_seg(self, sem_seg, area_threshold=None, alpha=0.8, draw_text=True, edge_color=_OFF_WHITE) -> VisImage:
        """Draw a label map (H, W) without the labels that stuff_classes lacks and parts below area_threshold pixels."""
        sem_seg = np.asarray(sem_seg)
        names, colors = self.metadata.stuff_classes, self.metadata.get("stuff_colors")
        labels, areas = np.unique(sem_seg, return_counts=True)
        for label in labels[np.argsort(-areas)]:
            if not 0 <= label < len(names):
                continue
            self.draw_binary_mask(
                sem_seg == label, None if colors is None else _unit(colors[label]), edge_color=edge_color,
                text=names[label] if draw_text else None, alpha=alpha, area_threshold=area_threshold,
            )
        return self.output

    def draw_panoptic_seg(self, panoptic_seg, segments_info, area_threshold=None, alpha=0.7) -> VisImage:
        """Draw (H, W) int ids of segments, which are those of the infos, or class * metadata.label_divisor + i."""
        prediction = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(prediction.non_empty_mask()))

        stuff_colors = self.metadata.get("stuff_colors")
        for mask, info in prediction.semantic_masks():
            category = info["category_id"]
            self.draw_binary_mask(
                mask, None if stuff_colors is None else _unit(stuff_colors[category]), edge_color=_OFF_WHITE,
                text=self.metadata.stuff_classes[category], alpha=alpha, area_threshold=area_threshold,
            )

        things = list(prediction.instance_masks())
        if not things:
            return self.output
        masks, infos = zip(*things)
        classes = [info["category_id"] for info in infos]
        scores = [info["score"] for info in infos] if all("score" in info for info in infos) else None
        crowd = [info.get("iscrowd", 0) for info in infos]
        labels = _create_text_labels(classes, scores, self.metadata.thing_classes, crowd)
        colors = self._class_colors(classes)
        return self.overlay_instances(masks=masks, labels=labels, assigned_colors=colors, alpha=alpha)

    draw_panoptic_seg_predictions = draw_panoptic_seg  # the name of before 2021

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the annotations of a record in Detectron2's format: instances, semantic and panoptic labels."""
        annotations = dic.get("annotations")
        if annotations:
            classes, crowd = zip(*((a["category_id"], a.get("iscrowd", 0)) for a in annotations))
            masks, keypoints = (
                [a[key] for a in annotations] if key in annotations[0] else None
                for key in ("segmentation", "keypoints")
            )
            self.overlay_instances(
                labels=_create_text_labels(classes, None, self.metadata.get("thing_classes"), crowd),
                boxes=[BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
                masks=masks,
                keypoints=None if keypoints is None else np.array(keypoints).reshape(len(annotations), -1, 3),
                assigned_colors=self._class_colors(classes) if self._instance_mode == ColorMode.SEGMENTATION else None,
            )

        def labels_of(kind: str):
            if dic.get(kind) is not None or f"{kind}_file_name" not in dic:
                return dic.get(kind)
            with PathManager.open(dic[f"{kind}_file_name"], "rb") as f:
                return np.asarray(Image.open(f))

        sem_seg, pan_seg = labels_of("sem_seg"), labels_of("pan_seg")
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        if pan_seg is not None:
            if pan_seg.ndim == 3:  # panopticapi's PNG: an id is R + 256 G + 65536 B
                pan_seg = pan_seg.astype(np.int64) @ np.array([1, 256, 65536])
            self.draw_panoptic_seg(pan_seg, dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    def overlay_instances(
        self, *, boxes=None, labels=None, masks=None, keypoints=None, assigned_colors=None, alpha=0.5
    ) -> VisImage:
        """Draw N instances, large ones first.

        Args:
            boxes: Boxes, or (N, 4) absolute x0, y0, x1, y1.
            masks: BitMasks, PolygonMasks, (N, H, W), or N of what GenericMask takes; `alpha` is their opacity.
            keypoints: Keypoints, or (N, K, 3) of x, y, score (or visibility).
            labels, assigned_colors: N texts and N colours; None writes none, and colours at random.
        """
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        keypoints = None if keypoints is None else np.asarray(getattr(keypoints, "tensor", keypoints))
        given = {"boxes": boxes, "masks": masks, "keypoints": keypoints, "labels": labels}
        counts = {name: len(value) for name, value in given.items() if value is not None}
        assert len(set(counts.values())) <= 1, f"These must be equally many: {counts}."
        number = next(iter(counts.values()), 0)
        if number == 0:
            return self.output
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(number)]

        order = range(number)
        if boxes is not None:
            order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
        elif masks is not None:
            order = np.argsort(-np.array([int(mask.area()) for mask in masks]))
        for i in order:
            color = assigned_colors[i]
            if boxes is not None:
                self.draw_box(boxes[i], edge_color=color)
            if masks is not None:
                for outline in masks[i].polygons:
                    self.draw_polygon(outline.reshape(-1, 2), color, alpha=alpha)
            if labels is not None:
                box, mask = (None if values is None else values[i] for values in (boxes, masks))
                self._label_instance(labels[i], color, box, mask)
        if keypoints is not None:
            for points in keypoints:
                self.draw_and_connect_keypoints(points)
        return self.output

    def _label_instance(self, label: str, color, box: np.ndarray | None, mask: GenericMask | None) -> None:
        """Write a label at the box's upper left corner, or in the middle of the mask."""
        output = self.output
        if box is not None:
            x0, y0, x1, y1 = box
            position, alignment = (x0, y0), "left"
        elif mask is not None and mask.area() > 0:
            x0, y0, x1, y1 = mask.bbox()
            position, alignment = np.median(mask.mask.nonzero(), axis=1)[::-1], "center"
        else:
            return
        if (y1 - y0) * (x1 - x0) < _SMALL_OBJECT_AREA_THRESH * output.scale or y1 - y0 < 40 * output.scale:
            # It would hide the object: below it instead, or to its right at the lower edge of the image.
            position = (x1, y0) if y1 >= output.height - 5 else (x0, y1)
        relative_height = (y1 - y0) / math.sqrt(output.height * output.width)
        size = np.clip((relative_height - 0.02) / 0.08 + 1, 1.2, 2) * 0.5 * self._default_font_size
        color = self._change_color_brightness(color, brightness_factor=0.7)
        self.draw_text(label, position, color=color, horizontal_alignment=alignment, font_size=size)

    overlay_rotated_instances = refused("Visualizer.overlay_rotated_instances", __name__)
    draw_rotated_box_with_label = refused("Visualizer.draw_rotated_box_with_label", __name__)

    def draw_and_connect_keypoints(self, keypoints) -> VisImage:
        """Draw one instance's keypoints, (K, 3) of x, y, score, and the lines of the metadata's connection rules."""
        names = self.metadata.get("keypoint_names")
        visible = {}
        for i, (x, y, score) in enumerate(keypoints):
            if score > self.keypoint_threshold:
                self.draw_circle((x, y), color=_RED)
                if names:
                    visible[names[i]] = (x, y)
        for first, second, color in self.metadata.get("keypoint_connection_rules") or []:
            if first in visible and second in visible:
                self.draw_line(*zip(visible[first], visible[second]), color=_unit(color))

        # A person's neck and spine, between points that are no keypoints themselves.
        for part in ("shoulder", "hip"):
            if f"left_{part}" in visible and f"right_{part}" in visible:
                visible[f"middle_{part}"] = np.mean([visible[f"left_{part}"], visible[f"right_{part}"]], axis=0)
        for start, end in (("nose", "middle_shoulder"), ("middle_shoulder", "middle_hip")):
            if start in visible and end in visible:
                self.draw_line(*zip(visible[start], visible[end]), color=_RED)
        return self.output

    def draw_text(
        self, text, position, *, font_size=None, color="g", horizontal_alignment="center", rotation=0
    ) -> VisImage:
        """Write on a dark ground, below `position` (x, y)."""
        font_size = font_size or self._default_font_size
        # Bright enough to be read on the dark ground.
        rgb = np.maximum(mplc.to_rgb(color), 0.2)
        rgb[np.argmax(rgb)] = max(0.8, rgb.max())
        self.output.ax.text(
            *position, text, size=font_size * self.output.scale, family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"}, verticalalignment="top",
            horizontalalignment=horizontal_alignment, color=rgb, zorder=10, rotation=rotation,
        )
        return self.output

    def draw_box(self, box_coord, alpha=0.5, edge_color="g", line_style="-") -> VisImage:
        """The outline of a box x0, y0, x1, y1."""
        x0, y0, x1, y1 = box_coord
        outline = {"edgecolor": edge_color, "linewidth": max(self._default_font_size / 4, 1) * self.output.scale}
        self.output.ax.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, alpha=alpha, linestyle=line_style, **outline)
        )
        return self.output

    def draw_circle(self, circle_coord, color, radius=3) -> VisImage:
        """A filled circle about (x, y)."""
        self.output.ax.add_patch(Circle(circle_coord, radius=radius, fill=True, color=color))
        return self.output

    def draw_line(self, x_data, y_data, color, linestyle="-", linewidth=None) -> VisImage:
        """Lines from point to point; x_data and y_data list their coordinates."""
        width = max(self._default_font_size / 3 if linewidth is None else linewidth, 1) * self.output.scale
        self.output.ax.add_line(Line2D(x_data, y_data, linewidth=width, color=color, linestyle=linestyle))
        return self.output

    def _draw_rgba(self, color, opacity: np.ndarray) -> None:
        """Lay a colour over the image, as opaque as (H, W) `opacity` says."""
        rgba = np.zeros((*opacity.shape, 4), dtype=np.float32)
        rgba[:, :, :3] = mplc.to_rgb(color)
        rgba[:, :, 3] = opacity
        self.output._lay(rgba)

    def draw_binary_mask(
        self, binary_mask, color=None, *, edge_color=None, text=None, alpha=0.5, area_threshold=10
    ) -> VisImage:
        """A mask (H, W) with `text`, in outline without parts below `area_threshold` pixels if it has no holes."""
        color = mplc.to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        binary_mask = np.asarray(binary_mask).astype(np.uint8)
        mask = GenericMask(binary_mask, *binary_mask.shape)
        drawn = mask.has_holes
        if mask.has_holes:
            self._draw_rgba(color, (binary_mask == 1) * alpha)
        else:
            for outline in mask.polygons:
                outline = outline.reshape(-1, 2)
                if cv2.contourArea(outline.astype(np.float32)) >= (area_threshold or 0):
                    self.draw_polygon(outline, color=color, edge_color=edge_color, alpha=alpha)
                    drawn = True
        if text is not None and drawn:
            self._draw_text_in_mask(binary_mask, text, self._change_color_brightness(color, brightness_factor=0.7))
        return self.output

    def draw_soft_mask(self, soft_mask, color=None, *, text=None, alpha=0.5) -> VisImage:
        """A mask (H, W) of values in [0, 1], as opaque as they are large; `text` goes where they exceed 0.5."""
        color = mplc.to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        soft_mask = np.asarray(soft_mask)
        self._draw_rgba(color, soft_mask * alpha)
        if text is not None:
            lighter = self._change_color_brightness(color, brightness_factor=0.7)
            self._draw_text_in_mask((soft_mask > 0.5).astype(np.uint8), text, lighter)
        return self.output

    def draw_polygon(self, segment, color, edge_color=None, alpha=0.5) -> VisImage:
        """A filled polygon (n, 2) with an outline."""
        if edge_color is None:  # on an opaque face only another colour shows
            edge_color = self._change_color_brightness(color, brightness_factor=-0.7) if alpha > 0.8 else color
        width = max(self._default_font_size // 15 * self.output.scale, 1)
        face, edge = (*mplc.to_rgb(color), alpha), (*mplc.to_rgb(edge_color), 1)
        self.output.ax.add_patch(Polygon(segment, fill=True, facecolor=face, edgecolor=edge, linewidth=width))
        return self.output

    def _jitter(self, color) -> tuple[float, ...]:
        """A colour half a unit away in a random direction, within the cube of colours."""
        step = np.random.rand(3)
        return tuple(np.clip(step / np.linalg.norm(step) * 0.5 + mplc.to_rgb(color), 0, 1))

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """The image in grey, in colour where `mask` (H, W) is true."""
        grey = np.repeat(self.img.astype(np.float32).mean(axis=2, keepdims=True), 3, axis=2)
        return grey if mask is None else np.where(np.asarray(mask, dtype=bool)[:, :, None], self.img, grey)

    def _change_color_brightness(self, color, brightness_factor: float) -> tuple[float, float, float]:
        """Lighter by a factor in (0, 1], darker by one in [-1, 0)."""
        assert -1.0 <= brightness_factor <= 1.0, f"A brightness factor lies in [-1, 1], got {brightness_factor}."
        hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        lightness = min(max(lightness * (1 + brightness_factor), 0.0), 1.0)
        return tuple(np.clip(colorsys.hls_to_rgb(hue, lightness, saturation), 0.0, 1.0))

    def _convert_boxes(self, boxes) -> np.ndarray:
        boxes = getattr(boxes, "tensor", boxes)
        boxes = boxes.detach().numpy() if isinstance(boxes, torch.Tensor) else np.asarray(boxes)
        if boxes.shape[1:] == (5,):
            self.overlay_rotated_instances()
        return boxes

    def _convert_masks(self, masks_or_polygons) -> list[GenericMask]:
        masks = getattr(masks_or_polygons, "tensor", getattr(masks_or_polygons, "polygons", masks_or_polygons))
        masks = masks.numpy() if isinstance(masks, torch.Tensor) else masks
        size = self.output.height, self.output.width
        return [mask if isinstance(mask, GenericMask) else GenericMask(mask, *size) for mask in masks]

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color) -> None:
        """Write into the largest connected part of a mask, and into every other large one."""
        _, components, stats, _ = cv2.connectedComponentsWithStats(binary_mask, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]  # the first one is the background
        for i, area in enumerate(areas):
            if i == np.argmax(areas) or area > _LARGE_MASK_AREA_THRESH:
                center = np.median((components == i + 1).nonzero(), axis=1)[::-1]
                self.draw_text(text, center, color=color)

    def get_output(self) -> VisImage:
        """The image with everything drawn so far."""
        return self.output
