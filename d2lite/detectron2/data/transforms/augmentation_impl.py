"""The augmentations.

Every random number comes from numpy's global generator. How many are drawn, and in which order, is part of the
interface: a seed must give the same pictures on every Detectron2.
"""
import sys
from typing import Tuple

import numpy as np
import torch
from fvcore.transforms.transform import (
    BlendTransform, CropTransform, HFlipTransform, NoOpTransform, PadTransform, Transform, TransformList,
    VFlipTransform,
)
from PIL import Image

from detectron2.structures import Boxes, pairwise_iou

from .augmentation import Augmentation, _transform_to_aug
from .transform import ExtentTransform, ResizeTransform, RotationTransform


class RandomApply(Augmentation):
    """Apply another augmentation or transform with probability `prob`."""

    def __init__(self, tfm_or_aug, prob: float = 0.5):
        assert 0.0 <= prob <= 1.0, f"A probability lies in [0, 1], got {prob}."
        self._init(locals())
        self.aug = _transform_to_aug(tfm_or_aug)

    def _does(self) -> bool:
        return self._rand_range() < self.prob

    def get_transform(self, *args) -> Transform:
        return self.aug.get_transform(*args) if self._does() else NoOpTransform()

    def __call__(self, aug_input) -> Transform:
        return self.aug(aug_input) if self._does() else NoOpTransform()


class RandomFlip(Augmentation):
    """Mirror with probability `prob` in one direction; ValueError if both or neither are asked for."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if bool(horizontal) == bool(vertical):
            raise ValueError(f"RandomFlip mirrors in one direction, got {horizontal=} and {vertical=}.")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resize to `shape`, (h, w) or one int for both, whatever the aspect ratio was."""

    def __init__(self, shape, interp=Image.BILINEAR):
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class RandomResize(Augmentation):
    """Resize to one of the (h, w) of `shape_list`."""

    def __init__(self, shape_list, interp=Image.BILINEAR):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        new_h, new_w = self.shape_list[np.random.choice(len(self.shape_list))]
        return ResizeTransform(*image.shape[:2], new_h, new_w, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize so that the shorter side gets a drawn length (pixels; 0 does nothing) and the longer at most `max_size`.

    `short_edge_length` is an int; for sample_style "range" a pair (low, high), both included; for "choice" a list.
    """

    @torch.jit.unused
    def __init__(self, short_edge_length, max_size=sys.maxsize, sample_style="range", interp=Image.BILINEAR):
        assert sample_style in ("range", "choice"), f"sample_style is 'range' or 'choice', got '{sample_style}'."
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        assert not self.is_range or len(short_edge_length) == 2, f"A 'range' is (low, high), got {short_edge_length}."
        self._init(locals())

    @torch.jit.unused
    def get_transform(self, image: np.ndarray):
        height, width = image.shape[:2]
        lengths = self.short_edge_length
        size = np.random.randint(lengths[0], lengths[1] + 1) if self.is_range else np.random.choice(lengths)
        if size == 0:
            return NoOpTransform()
        new_h, new_w = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, new_h, new_w, self.interp)

    # Kept within what TorchScript understands, since preprocessing code scripts it (hence the two `unused` above).
    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> Tuple[int, int]:
        """(h, w) after the resize; halves are rounded up."""
        short = float(short_edge_length)
        long = short / min(oldh, oldw) * max(oldh, oldw)
        if long > max_size:
            shrink = max_size * 1.0 / long
            short, long = short * shrink, long * shrink
        if oldh < oldw:
            return int(short + 0.5), int(long + 0.5)
        return int(long + 0.5), int(short + 0.5)


class ResizeScale(Augmentation):
    """Resize to fit into the target times a scale drawn from [min_scale, max_scale); keeps the aspect ratio.

    With `FixedSizeCrop` of the same target behind it, this is large-scale jitter (Ghiasi et al., Copy-Paste, 2021).
    """

    def __init__(
        self, min_scale: float, max_scale: float, target_height: int, target_width: int, interp: int = Image.BILINEAR
    ):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        scale = np.random.uniform(self.min_scale, self.max_scale)
        height, width = image.shape[:2]
        fit = min(self.target_height * scale / height, self.target_width * scale / width)
        new_h, new_w = int(np.round(height * fit)), int(np.round(width * fit))
        return ResizeTransform(height, width, new_h, new_w, self.interp)


class FixedSizeCrop(Augmentation):
    """Crop at a random place what exceeds `crop_size` (h, w); if `pad`, fill what falls short, right and below."""

    def __init__(self, crop_size: Tuple[int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        (height, width), (crop_h, crop_w) = image.shape[:2], self.crop_size
        place = np.random.uniform(0.0, 1.0)  # one number for both axes
        y0, x0 = int(np.round(max(height - crop_h, 0) * place)), int(np.round(max(width - crop_w, 0) * place))
        crop = CropTransform(x0, y0, crop_w, crop_h, width, height)
        if not self.pad:
            return TransformList([crop])
        missing, left = (max(crop_w - width, 0), max(crop_h - height, 0)), (min(crop_w, width), min(crop_h, height))
        return TransformList([crop, PadTransform(0, 0, *missing, *left, self.pad_value, self.seg_pad_value)])


class RandomCrop(Augmentation):
    """Crop a window of a given or drawn size at a random place.

    `crop_size` (h, w) means by `crop_type`: "relative" fractions of the image; "relative_range" fractions drawn from
    [crop_size, 1]; "absolute" pixels; "absolute_range" (low, high) pixels from which h and w are drawn.
    """

    def __init__(self, crop_type: str, crop_size):
        known = ("relative_range", "relative", "absolute", "absolute_range")
        assert crop_type in known, f"crop_type is one of {', '.join(known)}, got {crop_type!r}."
        self.crop_type, self.crop_size = crop_type, crop_size

    def get_crop_size(self, image_size: Tuple[int, int]) -> Tuple[int, int]:
        """(h, w) of the window in an image of (h, w)."""
        height, width = image_size
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(first, height), min(second, width)
        if self.crop_type == "absolute_range":
            assert first <= second, f"An absolute_range is (low, high), got {self.crop_size}."
            return tuple(np.random.randint(min(side, first), min(side, second) + 1) for side in image_size)
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            first, second = least + np.random.rand(2) * (1 - least)
        return int(height * first + 0.5), int(width * second + 0.5)

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        fits = crop_h <= height and crop_w <= width
        assert fits, f"A crop of {crop_h} x {crop_w} exceeds the image of {height} x {width}: {self}."
        y0 = np.random.randint(height - crop_h + 1)
        x0 = np.random.randint(width - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """`RandomCrop`, drawn up to ten times until no class but `ignored_category` exceeds a share of the window."""

    def __init__(self, crop_type: str, crop_size, single_category_max_area: float = 1.0, ignored_category: int = None):
        self._init(locals())
        self.crop_aug = RandomCrop(crop_type, crop_size)

    def _is_mixed(self, labels: np.ndarray) -> bool:
        values, counts = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            counts = counts[values != self.ignored_category]
        return len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            crop = self.crop_aug.get_transform(image)
            if self._is_mixed(crop.apply_segmentation(sem_seg)):
                break
        return crop


class MinIoURandomCrop(Augmentation):
    """Crop so that every box overlaps the window by a drawn IoU at least (Liu et al., SSD, 2016, section 2.2).

    Thresholds are drawn from `min_ious`, "no crop" and "any crop", `mode_trials` times, with `crop_trials` windows for
    each, which have `min_crop_size` of the image's height and width at least. After that: no crop.
    """

    def __init__(self, min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3, mode_trials=1000, crop_trials=50):
        self._init(locals())
        self.sample_mode = (1, *min_ious, 0)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        if boxes is None:
            return NoOpTransform()
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(self.sample_mode)
            if min_iou == 1:
                break
            for _ in range(self.crop_trials):
                window = self._draw_window(*image.shape[:2])
                if window is not None and self._is_good(window, boxes, min_iou):
                    return CropTransform(*(int(value) for value in window))
        return NoOpTransform()

    def _draw_window(self, height: int, width: int) -> tuple[float, float, float, float] | None:
        """x0, y0, w, h, or None if the drawn one is too oblong."""
        new_w = np.random.uniform(self.min_crop_size * width, width)
        new_h = np.random.uniform(self.min_crop_size * height, height)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        return np.random.uniform(width - new_w), np.random.uniform(height - new_h), new_w, new_h

    @staticmethod
    def _is_good(window: tuple[float, float, float, float], boxes: np.ndarray, min_iou: float) -> bool:
        left, top, width, height = window
        x0, y0, x1, y1 = corners = np.array([int(left), int(top), int(left + width), int(top + height)])
        if x0 == x1 or y0 == y1:
            return False
        overlaps = pairwise_iou(Boxes(corners[None]), Boxes(boxes))
        if overlaps.numel() and overlaps.min() < min_iou:
            return False
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        return len(boxes) == 0 or bool(((centers > (x0, y0)) & (centers < (x1, y1))).all(axis=1).any())


class RandomExtent(Augmentation):
    """Cut out a window of random size and place that may reach beyond the image.

    As shares of the image's size, `scale_range` (low, high) is that of the window's, and `shift_range` (x, y) how far
    its centre moves at most, half to either side.
    """

    def __init__(self, scale_range, shift_range):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        size = np.array(image.shape[1::-1])
        half = 0.5 * size * np.random.uniform(*self.scale_range)
        shift = self.shift_range * size * (np.random.rand(2) - 0.5)
        (x0, y0), (x1, y1) = shift - half + 0.5 * size, shift + half + 0.5 * size
        return ExtentTransform(src_rect=(x0, y0, x1, y1), output_size=(int(y1 - y0), int(x1 - x0)))


class RandomRotation(Augmentation):
    """Rotate counter-clockwise.

    Args:
        angle: degrees: one number, a pair (low, high) for "range", a list for "choice".
        center: (x, y) as fractions of the image: one point; for "range" a pair of opposite corners, for "choice" a
            list of points. None: the middle.
        expand: enlarge the image so that nothing is cut off; interp: one of cv2's INTER_*.
    """

    def __init__(self, angle, expand=True, center=None, sample_style="range", interp=None):
        assert sample_style in ("range", "choice"), f"sample_style is 'range' or 'choice', got {sample_style!r}."
        self.is_range = sample_style == "range"
        angle = (angle, angle) if isinstance(angle, (int, float)) else angle
        if center is not None and isinstance(center[0], (int, float)):
            center = (center, center)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        angle = np.random.uniform(*self.angle) if self.is_range else np.random.choice(self.angle)
        center = None
        if self.center is not None:
            places = self.center
            place = np.random.uniform(*places) if self.is_range else places[np.random.choice(len(places))]
            center = tuple(np.multiply(place, (width, height)))
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(height, width, angle, expand=self.expand, center=center, interp=self.interp)


class _RandomBlend(Augmentation):
    """Blend the image with a degenerate one: weight 1 keeps it, 0 replaces it, above 1 exaggerates the difference."""

    def __init__(self, intensity_min: float, intensity_max: float):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        source = self._source(image)
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=source, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomBlend):
    """Blend with the image's mean."""

    def _source(self, image: np.ndarray):
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Blend with black."""

    def _source(self, image: np.ndarray):
        return 0


class RandomSaturation(_RandomBlend):
    """Blend with the grey image (weights for RGB order)."""

    def _source(self, image: np.ndarray):
        assert image.shape[-1] == 3, f"Saturation is defined for RGB images, got the shape {image.shape}."
        return image.dot([0.299, 0.587, 0.114])[:, :, None]


class RandomLighting(Augmentation):
    """Add noise of deviation `scale` along the principal components of ImageNet's colours (AlexNet, section 4.1)."""

    def __init__(self, scale: float):
        self.scale = scale
        self.eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, f"Lighting is defined for RGB images, got the shape {image.shape}."
        weights = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(src_image=self.eigen_vecs.dot(weights * self.eigen_vals), src_weight=1.0, dst_weight=1.0)
