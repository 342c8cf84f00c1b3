"""COCO's json: reading it, writing any dataset as one, and semantic labels in PNG files."""
import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import pickle
from pathlib import PurePath

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from detectron2._lite import refused
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

main = refused("main", __name__)


def _register_categories(coco: COCO, dataset_name: str) -> dict[int, int]:
    """Note the classes, ascending by id, in the metadata; returns id in the json -> 0..C-1."""
    categories = sorted(coco.loadCats(coco.getCatIds()), key=lambda category: category["id"])
    if not categories:
        raise ValueError(f"The json of '{dataset_name}' has no categories.")
    ids = [category["id"] for category in categories]
    if ids != list(range(1, len(ids) + 1)) and "coco" not in dataset_name:
        logger.warning(f"Category ids of '{dataset_name}' are not 1 to {len(ids)}; they become 0 to {len(ids) - 1}.")
    id_map = {category_id: contiguous for contiguous, category_id in enumerate(ids)}
    names = [category["name"] for category in categories]
    MetadataCatalog.get(dataset_name).set(thing_classes=names, thing_dataset_id_to_contiguous_id=id_map)
    return id_map


def _shifted(keypoints: list, offset: float) -> list:
    """x, y, visibility, ...: COCO's x and y are indices of pixels; ours coordinates, with a pixel's centre at + 0.5."""
    return [value if i % 3 == 2 else value + offset for i, value in enumerate(keypoints)]


def _valid_segmentation(segmentation):
    """The polygons that have three points at least, or a compressed RLE; None if no polygon is left."""
    if isinstance(segmentation, dict):
        is_compressed = not isinstance(segmentation["counts"], list)
        return segmentation if is_compressed else mask_util.frPyObjects(segmentation, *segmentation["size"])
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6] or None


def _convert_annotation(annotation: dict, fields: list[str], id_map: dict[int, int] | None) -> dict | None:
    """One annotation in Detectron2's format; None if its polygons are all invalid."""
    assert annotation.get("ignore", 0) == 0, f"Annotation {annotation['id']} has 'ignore', which is not supported."
    converted = {field: annotation[field] for field in fields if field in annotation}
    if "bbox" in converted and len(converted["bbox"]) == 0:
        raise ValueError(f"Annotation {annotation['id']} of image {annotation['image_id']} has an empty 'bbox'.")
    if annotation.get("segmentation"):
        converted["segmentation"] = _valid_segmentation(annotation["segmentation"])
        if converted["segmentation"] is None:
            return None
    if annotation.get("keypoints"):
        converted["keypoints"] = _shifted(annotation["keypoints"], 0.5)
    converted["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        category = annotation["category_id"]
        if category not in id_map:
            raise KeyError(f"Annotation {annotation['id']} has category_id {category}, which is no category's id.")
        converted["category_id"] = id_map[category]
    return converted


def load_coco_json(json_file, image_root, dataset_name=None, extra_annotation_keys=None) -> list[dict]:
    """Read COCO's instance json.

    Args:
        image_root: the folder that the json's file names start from.
        dataset_name: set this dataset's metadata thing_classes and thing_dataset_id_to_contiguous_id, and number the
            classes from 0 in the order of their ids. None: ids stay as they are.
        extra_annotation_keys: further keys to take over where an annotation has them.

    Returns:
        Records, ascending by image id: file_name, height, width, image_id, annotations (iscrowd, bbox in XYWH_ABS,
        category_id, and where present segmentation, keypoints) without those whose polygons all are invalid.

    Raises:
        KeyError: a missing size or category. AssertionError: duplicate ids, `ignore`. ValueError: an empty bbox.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO(PathManager.get_local_path(json_file))
    id_map = _register_categories(coco, dataset_name) if dataset_name is not None else None

    image_ids = sorted(coco.imgs)
    annotation_ids = [annotation["id"] for found in coco.imgToAnns.values() for annotation in found]
    assert len(set(annotation_ids)) == len(annotation_ids), f"Annotation ids in {json_file} are not unique."
    orphans = len(coco.anns) - sum(len(coco.imgToAnns[image_id]) for image_id in image_ids)
    if orphans > 0:
        logger.warning(f"{orphans} of {len(coco.anns)} annotations in {json_file} belong to none of its images.")

    fields = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    records, dropped = [], 0
    for image in coco.loadImgs(image_ids):
        annotations = [_convert_annotation(a, fields, id_map) for a in coco.imgToAnns[image["id"]]]
        kept = [a for a in annotations if a is not None]
        dropped += len(annotations) - len(kept)
        record = {"file_name": os.path.join(image_root, image["file_name"]), "image_id": image["id"]}
        records.append({**record, "height": image["height"], "width": image["width"], "annotations": kept})
    if dropped:
        logger.warning(f"{dropped} annotations of {json_file} have no polygon of three points and are left out.")
    logger.info(f"{len(records)} images read from {json_file}.")
    return records


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a COCO json, read when it is used, with further `metadata`; once more is right with equal arguments."""
    assert isinstance(name, str), f"A dataset's name is a str, got {name!r}."
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict]:
    """Records of images (file_name) and label files (sem_seg_file_name) of the same path apart from the extension."""

    def by_stem(root: str, extension: str) -> dict[str, str]:
        folder = PathManager.get_local_path(root)
        files = glob.glob(f"**/*{extension}", root_dir=folder, recursive=True)
        return {file.removesuffix(extension): os.path.join(folder, file) for file in files}

    images, labels = by_stem(image_root, image_ext), by_stem(gt_root, gt_ext)
    assert labels, f"No label file *.{gt_ext} lies below {gt_root}."
    both = sorted(images.keys() & labels.keys())
    if not len(images) == len(labels) == len(both):
        logger.warning(f"{len(images)} images and {len(labels)} label files make {len(both)} pairs; the rest is out.")
    return [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in both]


def _segmentation_and_area(annotation: dict) -> tuple[list | dict, float]:
    """The segmentation as json can hold it, and its area in pixels."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        area = PolygonMasks([segmentation]).area()[0].item()
        return [np.asarray(polygon).tolist() for polygon in segmentation], area
    if not isinstance(segmentation, dict):
        raise TypeError(f"A segmentation is a list of polygons or an RLE dict, got {type(segmentation).__name__}.")
    rle = _valid_segmentation(segmentation)
    counts = rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"]
    return {"size": [int(side) for side in rle["size"]], "counts": counts}, float(mask_util.area(rle))


def _to_coco_annotation(annotation: dict, annotation_id: int, image_id, to_dataset_id) -> dict:
    box, mode = np.asarray(annotation["bbox"], dtype=float).tolist(), annotation["bbox_mode"]
    if mode != BoxMode.XYWHA_ABS:
        box = BoxMode.convert(box, mode, BoxMode.XYWH_ABS)
    area = box[2] * box[3]
    converted = {
        "id": annotation_id, "image_id": image_id, "bbox": [round(float(value), 3) for value in box],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": int(to_dataset_id(annotation["category_id"])),
    }
    if "segmentation" in annotation:
        converted["segmentation"], area = _segmentation_and_area(annotation)
    if "keypoints" in annotation:
        flat = np.asarray(annotation["keypoints"], dtype=float).reshape(-1).tolist()
        converted["keypoints"] = _shifted(flat, -0.5)
        converted["num_keypoints"] = annotation.get("num_keypoints", sum(v > 0 for v in flat[2::3]))
    return {**converted, "area": area}


def convert_to_coco_dict(dataset_name: str) -> dict:
    """A registered dataset as the content of a COCO json.

    Classes get the ids of the metadata's thing_dataset_id_to_contiguous_id, or 0..C-1 without one. The records
    themselves are not changed. An annotation's area is that of its mask, or of its box if it has none.
    """
    return _convert(DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name))


def _convert(records: list[dict], metadata) -> dict:
    id_map = metadata.get("thing_dataset_id_to_contiguous_id")
    to_dataset_id = {number: category for category, number in id_map.items()}.__getitem__ if id_map else int
    images, annotations = [], []
    for position, record in enumerate(records):
        image = {"id": record.get("image_id", position), "file_name": str(record["file_name"])}
        images.append({**image, "width": int(record["width"]), "height": int(record["height"])})
        for annotation in record.get("annotations", []):
            annotations.append(_to_coco_annotation(annotation, len(annotations) + 1, image["id"], to_dataset_id))
    content = {
        "info": {"description": "Converted from a dataset registered with Detectron2."},
        "licenses": None,
        "images": images,
        "categories": [{"id": int(to_dataset_id(i)), "name": name} for i, name in enumerate(metadata.thing_classes)],
    }
    if annotations:  # no key at all says "unlabelled" to the evaluator, an empty list "labelled, and nothing is there"
        content["annotations"] = annotations
    return content


def _fingerprint(records: list[dict], metadata) -> str:
    """Tells one content of a dataset from another. A false alarm only costs a conversion."""
    content = (records, metadata.thing_classes, metadata.get("thing_dataset_id_to_contiguous_id"))
    return hashlib.sha256(pickle.dumps(content, protocol=4)).hexdigest()


def _has_fingerprint(file: str, fingerprint: str) -> bool:
    try:
        with PathManager.open(file) as f:
            return json.load(f)["info"].get("fingerprint") == fingerprint
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, damaged, or written by something else
        return False


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered dataset as a COCO json; `allow_cached` keeps a file made from exactly these records."""
    records, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    PathManager.mkdirs(str(PurePath(output_file).parent))
    fingerprint = _fingerprint(records, metadata)
    with file_lock(output_file):
        if allow_cached and _has_fingerprint(output_file, fingerprint):
            logger.info(f"{output_file} holds the dataset '{dataset_name}' already.")
            return
        content = _convert(records, metadata)
        content["info"]["fingerprint"] = fingerprint
        logger.info(f"Writing '{dataset_name}' in COCO's format to {output_file}.")
        temporary = f"{output_file}.tmp"
        with PathManager.open(temporary, "w") as f:
            json.dump(content, f)
        os.replace(temporary, output_file)
