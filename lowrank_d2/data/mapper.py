"""From a catalog record to what the model eats: one mapper for every dataset, in training and testing.

Augmentation draws from numpy's global generator, as Detectron2's classes do. So that a run can be resumed exactly, the
mapper seeds that generator for the time of one sample from (SEED, position of the sample in the sampler's sequence)
and puts the old state back; workers, their number and what they did before make no difference.
"""

import contextlib
import math
from typing import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from lowrank_d2.data.image_files import EXIF_CHOICES, read_image
from lowrank_d2.data.resize import ResizeToMultiple
from lowrank_d2.data.segmentations import decode
from lowrank_d2.errors import ConfigError, DataError, TrainingError

POSITION = "sample_position"  # key of a record: its place in the sampler's endless sequence
_SEED_DOMAIN = 0x6D61  # keeps these streams apart from others that start from the same SEED


class LowRankMapper:
    """Maps a record of DatasetCatalog to `image` (uint8 (C, H, W)), `height`, `width` and, in training, `instances`.

    `instances` has gt_boxes (tight around the masks), gt_classes and gt_masks (BitMasks); crowds are left out, and an
    image may end up without any. Segmentations may be polygons or run lengths, mixed at will. For models that read boxes
    alone there are no gt_masks, and gt_boxes are the records' own, moved and clipped.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        seed: int = 0,
        exif: str = "apply",
        largest: tuple[int, int] | None = None,
        with_instances: bool | None = None,
        with_masks: bool = True,
    ):
        """
        Args:
            augmentations: applied in order.
            image_format: "RGB" or "BGR", the order of channels in `image`.
            seed: of all augmentation; see the module.
            exif: "apply" or "ignore", as in `read_image`.
            largest: (height, width) of a box into which every augmented image fits before it is cropped; huge JPEGs
                are then decoded smaller. None: always decoded in full.
            with_instances: give `instances` in testing too, for a validation loss; None: as `is_train`.
            with_masks: False for models of boxes alone.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.seed = seed
        self.exif = exif
        self.largest = largest
        self.with_instances = is_train if with_instances is None else with_instances
        self.with_masks = with_masks

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        node = cfg.INPUT
        if node.FORMAT not in ("RGB", "BGR"):
            raise ConfigError(f"INPUT.FORMAT is {node.FORMAT!r}; it must be 'RGB' or 'BGR'.")
        if node.EXIF not in EXIF_CHOICES:
            raise ConfigError(f"INPUT.EXIF is {node.EXIF!r}; it must be one of {', '.join(map(repr, EXIF_CHOICES))}.")
        augmentations, largest = build_augmentations(cfg, is_train)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "largest": largest,
            "image_format": node.FORMAT,
            "seed": max(cfg.SEED, 0),
            "exif": node.EXIF,
            "with_masks": not boxes_only(cfg),
        }

    def __call__(self, record: dict) -> dict:
        with _seeded(self.seed, record.get(POSITION)):
            return self._map(record)

    def _map(self, record: dict) -> dict:
        image, shrink = self._read(record)
        augmented = T.AugInput(image)
        transforms = T.TransformList([shrink, self.augmentations(augmented)])
        pixels = augmented.image if self.image_format == "RGB" else augmented.image[..., ::-1]
        sample = {key: value for key, value in record.items() if key != "annotations"}
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])
        sample["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self.with_instances:
            size = augmented.image.shape[:2]
            instances_of = _instances if self.with_masks else _boxes
            sample["instances"] = instances_of(record, transforms, size)
        return sample

    def _read(self, record: dict) -> tuple[np.ndarray, T.Transform]:
        """The image, and the transform from the record's pixels to those of the image (a JPEG may have been shrunk).

        Raises:
            TrainingError: the file has changed since it was checked.
        """
        height, width = record.get("height"), record.get("width")
        smallest = None
        if self.largest is not None and height and width:
            ratio = min(self.largest[0] / height, self.largest[1] / width)
            smallest = (math.ceil(height * ratio), math.ceil(width * ratio)) if ratio < 0.5 else None
        try:
            image = read_image(record["file_name"], exif=self.exif, smallest=smallest)
        except DataError as error:
            raise TrainingError(str(error)) from error
        if not height or not width or image.shape[:2] == (height, width):
            return image, T.NoOpTransform()
        if smallest is None or not _same_shape(image.shape, height, width):
            raise TrainingError(
                f"{record['file_name']} has {image.shape[1]} x {image.shape[0]} pixels, "
                f"its record says {width} x {height}. Mend the record, or see INPUT.EXIF; "
                "tools/check_dataset.py lists all such images."
            )
        return image, T.ResizeTransform(height, width, image.shape[0], image.shape[1])


def boxes_only(cfg: CfgNode) -> bool:
    """Whether the model of `cfg` reads no masks, which its class says by an attribute `boxes_only`."""
    name = cfg.MODEL.META_ARCHITECTURE
    # `is True`: a class that stands in for one that is not installed answers to every name.
    return name in META_ARCH_REGISTRY and getattr(META_ARCH_REGISTRY.get(name), "boxes_only", False) is True


def build_augmentations(cfg: CfgNode, is_train: bool) -> tuple[list[T.Augmentation], tuple[int, int] | None]:
    """The augmentations that INPUT asks for, and the box (height, width) into which their results fit before cropping.

    Raises:
        ConfigError: an unknown INPUT.DATASET_MAPPER_NAME or RANDOM_FLIP, a CANVAS that is no (height, width), scales
            that cross.
    """
    node = cfg.INPUT
    if not is_train:
        resize = _resize(cfg, node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice")
        return [resize], (node.MAX_SIZE_TEST, node.MAX_SIZE_TEST) if node.MIN_SIZE_TEST else None
    name = node.DATASET_MAPPER_NAME
    if name not in _TRAINING:
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}; for instances it must be one of {', '.join(map(repr, _TRAINING))}."
        )
    return _TRAINING[name](cfg)


def _fixed_canvas(cfg: CfgNode) -> tuple[list[T.Augmentation], tuple[int, int]]:
    """Ours: what is not covered by the image is filled with the mean grey, which the model sees as about zero."""
    canvas = list(cfg.INPUT.CANVAS) or [cfg.INPUT.IMAGE_SIZE] * 2
    if len(canvas) != 2 or not all(isinstance(side, int) and side > 0 for side in canvas):
        raise ConfigError(f"INPUT.CANVAS is {cfg.INPUT.CANVAS}; it must be [] or [height, width] in pixels.")
    return _jitter_and_crop(cfg, canvas, float(np.mean(cfg.MODEL.PIXEL_MEAN)))


def _large_scale_jitter(cfg: CfgNode) -> tuple[list[T.Augmentation], tuple[int, int]]:
    return _jitter_and_crop(cfg, [cfg.INPUT.IMAGE_SIZE] * 2, 128.0)


def _jitter_and_crop(cfg: CfgNode, canvas: Sequence[int], fill: float) -> tuple[list[T.Augmentation], tuple[int, int]]:
    low, high = cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE
    if not 0 < low <= high:
        raise ConfigError(f"INPUT.MIN_SCALE {low} and INPUT.MAX_SCALE {high} must be above 0 and in this order.")
    height, width = canvas
    steps = [*_flip(cfg), T.ResizeScale(low, high, height, width), T.FixedSizeCrop((height, width), pad_value=fill)]
    return steps, (math.ceil(high * height), math.ceil(high * width))


def _detection_transformer(cfg: CfgNode) -> tuple[list[T.Augmentation], None]:
    """As DETR: with INPUT.CROP every second image is first scaled to about 500 pixels and cropped."""
    resize = _resize_train(cfg)
    if not cfg.INPUT.CROP.ENABLED:
        return [*_flip(cfg), resize], None
    crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    zoomed = T.AugmentationList([T.ResizeShortestEdge([400, 500, 600], sample_style="choice"), crop, resize])
    return [*_flip(cfg), _Either(resize, zoomed)], None


def _detectron2(cfg: CfgNode) -> tuple[list[T.Augmentation], None]:
    crop = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)] if cfg.INPUT.CROP.ENABLED else []
    return [*crop, _resize_train(cfg), *_flip(cfg)], None


def _resize_train(cfg: CfgNode) -> T.Augmentation:
    node = cfg.INPUT
    return _resize(cfg, node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING)


def _resize(cfg: CfgNode, shorts: int | Sequence[int], longest: int, sampling: str) -> T.Augmentation:
    multiple = cfg.INPUT.SIZE_MULTIPLE
    shorts = (shorts,) if isinstance(shorts, int) else shorts
    if multiple == 1 or not all(shorts):
        return T.ResizeShortestEdge(shorts, longest, sampling)
    if sampling != "choice" and len(shorts) > 1:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {sampling!r}, but with INPUT.SIZE_MULTIPLE {multiple} sizes are chosen from "
            "a list. Set it to 'choice'."
        )
    return ResizeToMultiple(shorts, longest, multiple)


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    kind = cfg.INPUT.RANDOM_FLIP
    if kind not in ("horizontal", "vertical", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP is {kind!r}; it must be 'horizontal', 'vertical' or 'none'.")
    return [] if kind == "none" else [T.RandomFlip(horizontal=kind == "horizontal", vertical=kind == "vertical")]


_TRAINING = {
    "lowrank_instance": _fixed_canvas,
    "coco_instance_lsj": _large_scale_jitter,
    "coco_instance_detr": _detection_transformer,
    "MaskDINO_semantic": _detectron2,
}


class _Either(T.Augmentation):
    """One of two augmentations, each with probability a half."""

    def __init__(self, first: T.Augmentation, second: T.Augmentation):
        super().__init__()
        self.choices = (first, second)

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        return self.choices[int(np.random.uniform() < 0.5)](aug_input)


@contextlib.contextmanager
def _seeded(seed: int, position: int | None) -> Iterator[None]:
    """Numpy's global generator as a function of (seed, position) inside; untouched for records without a position."""
    if position is None:
        yield
        return
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence([_SEED_DOMAIN, seed, int(position)]).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)


def _instances(record: dict, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """The objects of an augmented image of `size` (height, width); those without a pixel left are dropped."""
    masks, classes = [], []
    for annotation in record.get("annotations", ()):
        if annotation.get("iscrowd", 0):
            continue
        mask = _mask(annotation["segmentation"], record, transforms, size)
        if mask.any():
            masks.append(mask)
            classes.append(annotation["category_id"])
    stacked = np.stack(masks) if masks else np.zeros((0, *size), bool)
    instances = Instances(size)
    instances.gt_masks = BitMasks(torch.from_numpy(stacked))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def _boxes(record: dict, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """As `_instances`, of the records' boxes alone."""
    kept = [annotation for annotation in record.get("annotations", ()) if not annotation.get("iscrowd", 0)]
    corners = [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS) for each in kept]
    moved = transforms.apply_box(np.asarray(corners, float).reshape(-1, 4))
    boxes = Boxes(torch.as_tensor(np.asarray(moved), dtype=torch.float32).reshape(-1, 4))
    boxes.clip(size)
    visible = boxes.nonempty()
    instances = Instances(size)
    instances.gt_boxes = boxes[visible]
    instances.gt_classes = torch.tensor([each["category_id"] for each in kept], dtype=torch.int64)[visible]
    return instances


def _mask(segmentation: list | dict, record: dict, transforms: T.TransformList, size: tuple[int, int]) -> np.ndarray:
    """Polygons are moved and rasterised once, at the final size; run lengths are decoded and resampled."""
    if isinstance(segmentation, dict):
        mask = decode(segmentation, *segmentation["size"]).astype(np.uint8)
        return transforms.apply_segmentation(mask) == 1  # padding has another value
    moved = [transforms.apply_coords(np.asarray(polygon, float).reshape(-1, 2)) for polygon in segmentation]
    return decode([polygon.reshape(-1).tolist() for polygon in moved], *size)


def _same_shape(shape: Sequence[int], height: int, width: int) -> bool:
    """Whether an image is `height` x `width` divided by 2, 4 or 8, rounded up, as JPEG decoders shrink."""
    return any(tuple(shape[:2]) == (-(-height // k), -(-width // k)) for k in (2, 4, 8))
