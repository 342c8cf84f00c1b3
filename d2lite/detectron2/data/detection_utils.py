"""The steps between a dataset's record and a model's input: read, transform, collect into `Instances`."""
import logging
from typing import Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from fvcore.transforms.transform import CropTransform, HFlipTransform, TransformList
from PIL import Image, ImageOps

from detectron2._lite import refused
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog

# ITU-R BT.601; rows are Y, U, V (and R, G, B) for values in [0, 1].
_M_RGB2YUV = [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
_M_YUV2RGB = [[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]]

_EXIF_ORIENT = 274  # the tag's number

transform_proposals = refused("transform_proposals", __name__)
annotations_to_instances_rotated = refused("annotations_to_instances_rotated", __name__)
get_fed_loss_cls_weights = refused("get_fed_loss_cls_weights", __name__)


class SizeMismatchError(ValueError):
    """An image has another size than its record says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """A picture in a format: None (the file's own mode), "BGR", "YUV-BT.601", or a mode of Pillow.

    (H, W, C) uint8, or float64 in [0, 1] for YUV; "L" has C = 1; without a format a palette image is (H, W) indices.
    """
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, np.array(_M_RGB2YUV).T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The inverse of `convert_PIL_to_numpy`: (H, W, C) to (H, W, 3) RGB in 0..255, uint8, or float64 from YUV."""
    image = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(image, np.array(_M_YUV2RGB).T) * 255.0
    if format == "L":
        image = image[:, :, 0]
    return np.asarray(Image.fromarray(image.astype(np.uint8), mode=format).convert("RGB"))


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn a photograph the way its camera was held (EXIF orientations 2 to 8)."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENT)
    except Exception:  # Pillow raises whatever a damaged block makes it stumble over; the picture itself may be fine
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """An image file, turned upright, in a format of `convert_PIL_to_numpy`."""
    with PathManager.open(file_name, "rb") as f:
        return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(f)), format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare a record's size with its image (SizeMismatchError); fill it in where the record has none."""
    size = dict(zip(("height", "width"), image.shape))
    said = {side: dataset_dict.setdefault(side, length) for side, length in size.items()}
    if said != size:
        raise SizeMismatchError(
            f"The image {dataset_dict.get('file_name', '')} is {size['height']} high and {size['width']} wide, its "
            f"record says {said['height']} and {said['width']}. Correct the record, or the image's EXIF orientation."
        )


def get_bbox(annotation: dict) -> np.ndarray:
    """(4,) x0, y0, x1, y1 of an annotation's box, whatever its bbox_mode."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _transform_segmentation(segmentation, transforms, image_size: tuple[int, int]):
    """Polygons give a list of (2 n,) vectors; an RLE gives an (H, W) array."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if not isinstance(segmentation, dict):
        raise ValueError(f"A segmentation is a list of polygons or a dict with COCO's RLE, got {type(segmentation)}.")
    mask = transforms.apply_segmentation(mask_util.decode(segmentation))
    assert mask.shape[:2] == tuple(image_size), f"The transformed mask is {mask.shape[:2]}, the image {image_size}."
    return mask


def transform_instance_annotations(
    annotation: dict, transforms, image_size: tuple[int, int], *, keypoint_hflip_indices: np.ndarray | None = None
) -> dict:
    """Apply transforms to one annotation in place, and return it.

    The box becomes that of its transformed corners, clipped to `image_size` (h, w), XYXY_ABS. Polygons may become an
    empty list. A flip of keypoints needs the `keypoint_hflip_indices` of `create_keypoint_hflip_indices`.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = TransformList(transforms)
    height, width = image_size
    box = transforms.apply_box(np.array([get_bbox(annotation)]))[0]
    annotation["bbox"] = np.minimum(box.clip(min=0), [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    if "keypoints" in annotation:
        points = annotation["keypoints"]
        annotation["keypoints"] = transform_keypoint_annotations(points, transforms, image_size, keypoint_hflip_indices)
    return annotation


def transform_keypoint_annotations(
    keypoints, transforms, image_size: tuple[int, int], keypoint_hflip_indices: np.ndarray | None = None
) -> np.ndarray:
    """(3 K,) or (K, 3) of x, y, visibility -> (K, 3).

    Points that leave the image become unlabelled (0, 0, 0). After an odd number of horizontal flips left and right
    change places, by `keypoint_hflip_indices`; ValueError if these are missing, or are not K.
    """
    keypoints = np.asarray(keypoints, dtype="float64").reshape(-1, 3)
    xy = transforms.apply_coords(keypoints[:, :2])
    inside = ((xy >= 0) & (xy <= np.array(image_size[::-1]))).all(axis=1)
    keypoints[:, :2] = xy
    keypoints[~inside, 2] = 0

    if keypoint_hflip_indices is not None and len(keypoint_hflip_indices) != len(keypoints):
        raise ValueError(f"An annotation has {len(keypoints)} keypoints, the metadata {len(keypoint_hflip_indices)}.")
    if sum(isinstance(t, HFlipTransform) for t in transforms.transforms) % 2 == 1:
        if keypoint_hflip_indices is None:
            raise ValueError("Flipping keypoints needs keypoint_hflip_indices: which of them are left and right?")
        keypoints = keypoints[np.asarray(keypoint_hflip_indices, dtype=np.int32)]
    keypoints[keypoints[:, 2] == 0] = 0
    return keypoints


def _to_mask(segmentation, image_size: tuple[int, int]) -> np.ndarray:
    """(H, W) array of polygons, of an RLE, or of an array."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if not isinstance(segmentation, np.ndarray):
        raise ValueError(f"A mask is a list of polygons, a dict with COCO's RLE or an array, got {type(segmentation)}.")
    assert segmentation.ndim == 2, f"A mask has the shape (H, W), got {segmentation.shape}."
    return segmentation


def annotations_to_instances(
    annos: Sequence[dict], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Instances with gt_boxes, gt_classes and, if the first annotation has them, gt_masks and gt_keypoints.

    `mask_format` is "polygon" (PolygonMasks; ValueError for a mask that is none) or "bitmask" (BitMasks).
    """
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack([get_bbox(anno) for anno in annos]) if len(annos) else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    if not len(annos):
        return target

    if "segmentation" in annos[0]:
        segmentations = [anno["segmentation"] for anno in annos]
        if mask_format == "polygon":
            try:
                target.gt_masks = PolygonMasks(segmentations)
            except ValueError as error:
                advice = "For masks that are no lists of polygons, the mask_format (INPUT.MASK_FORMAT) is 'bitmask'"
                raise ValueError(f"{advice}. {error}") from error
        else:
            assert mask_format == "bitmask", f"mask_format is 'polygon' or 'bitmask', got {mask_format!r}."
            masks = np.stack([_to_mask(segmentation, image_size) for segmentation in segmentations])
            target.gt_masks = BitMasks(torch.from_numpy(masks))
    if "keypoints" in annos[0]:
        target.gt_keypoints = Keypoints(np.stack([np.asarray(anno.get("keypoints", [])) for anno in annos]))
    return target


def filter_empty_instances(
    instances: Instances, by_box: bool = True, by_mask: bool = True, box_threshold: float = 1e-5,
    return_mask: bool = False,
):
    """The instances whose box exceeds `box_threshold` both ways and whose mask is not empty (, and an (N,) bool)."""
    assert by_box or by_mask, "filter_empty_instances needs by_box, by_mask or both."
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep = keep & instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep = keep & instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """AttributeError if a dataset has no metadata under `key`, ValueError if one differs from the first."""
    first, *others = [(name, getattr(MetadataCatalog.get(name), key)) for name in dataset_names]
    for name, value in others:
        if value != first[1]:
            logging.getLogger(__name__).error(f"'{key}' of '{first[0]}' is {first[1]}, of '{name}' {value}.")
            raise ValueError(f"'{first[0]}' and '{name}' have different '{key}'; they cannot be used together.")


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """For every keypoint the index of the one that takes its place in a mirrored image.

    From the metadata `keypoint_names` and `keypoint_flip_map` (pairs of names), which all datasets must share.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    partner = dict(metadata.keypoint_flip_map)
    partner.update({right: left for left, right in metadata.keypoint_flip_map})
    keypoints = list(metadata.keypoint_names)
    return [keypoints.index(partner.get(name, name)) for name in keypoints]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> CropTransform:
    """A random crop of (h, w) `crop_size` that contains the centre of an annotation's box."""
    x0, y0, x1, y1 = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    crop, image = np.asarray(crop_size, dtype=np.int32), np.asarray(image_size)
    center = np.array([(y0 + y1) * 0.5, (x0 + x1) * 0.5])
    assert (center <= image).all(), f"The box {(x0, y0, x1, y1)} has its centre outside {tuple(image_size)}."
    assert (crop <= image).all(), f"A crop of {tuple(crop_size)} does not fit into {tuple(image_size)}."

    lowest = np.maximum(np.floor(center).astype(np.int32) - crop, 0)
    highest = np.minimum(image - crop, np.ceil(center).astype(np.int32))
    top = np.random.randint(lowest[0], highest[0] + 1)
    left = np.random.randint(lowest[1], highest[1] + 1)
    return CropTransform(left, top, int(crop[1]), int(crop[0]))


def build_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """The default augmentations of a config: `ResizeShortestEdge` and, for training, `RandomFlip`."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    options, flip = cfg.INPUT, cfg.INPUT.RANDOM_FLIP
    resize = T.ResizeShortestEdge(options.MIN_SIZE_TRAIN, options.MAX_SIZE_TRAIN, options.MIN_SIZE_TRAIN_SAMPLING)
    if flip == "none":
        return [resize]
    return [resize, T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


build_transform_gen = build_augmentation  # the name of before 2020
