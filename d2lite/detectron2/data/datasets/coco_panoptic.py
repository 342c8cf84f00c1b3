"""COCO's panoptic format: a PNG of segment ids an image, and a json that says what the segments are."""
from __future__ import annotations

import copy
import json
import os

from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog
from .coco import load_coco_json, load_sem_seg

__all__ = ["register_coco_panoptic", "register_coco_panoptic_separated"]


def _to_contiguous(segment: dict, meta: dict) -> dict:
    """A segment with the model's class number, and whether it is a thing."""
    dataset_id = segment["category_id"]
    is_thing = dataset_id in meta["thing_dataset_id_to_contiguous_id"]
    id_map = meta["thing_dataset_id_to_contiguous_id" if is_thing else "stuff_dataset_id_to_contiguous_id"]
    return {**segment, "category_id": id_map[dataset_id], "isthing": is_thing}


def load_coco_panoptic_json(json_file: str, image_dir: str, gt_dir: str, meta: dict) -> list[dict]:
    """Records with file_name, image_id, pan_seg_file_name and segments_info. The first one's files must exist.

    Args:
        json_file: panoptic json. image_dir: with <id>.jpg. gt_dir: with the PNG files that the json names.
        meta: thing_dataset_id_to_contiguous_id and stuff_dataset_id_to_contiguous_id.
    """
    with PathManager.open(json_file) as f:
        annotations = json.load(f)["annotations"]
    records = [
        {
            "file_name": os.path.join(image_dir, os.path.splitext(annotation["file_name"])[0] + ".jpg"),
            "image_id": int(annotation["image_id"]),
            "pan_seg_file_name": os.path.join(gt_dir, annotation["file_name"]),
            "segments_info": [_to_contiguous(segment, meta) for segment in annotation["segments_info"]],
        }
        for annotation in annotations
    ]
    assert records, f"{json_file} has no images."
    for key in ("file_name", "pan_seg_file_name"):
        assert PathManager.isfile(records[0][key]), f"{json_file} names {records[0][key]}, which does not exist."
    return records


def register_coco_panoptic(
    name: str,
    metadata: dict,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Register a dataset with one panoptic annotation an image.

    Args:
        metadata: further metadata, with both id maps.
        instances_json: COCO's instance json of the same images, for instance evaluation.
    """
    DatasetCatalog.register(name, lambda: load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata))
    MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        **metadata,
    )


def register_coco_panoptic_separated(
    name: str,
    metadata: dict,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Register "<name>_separated" (instances and semantic labels apart, as Panoptic FPN wants them) and
    "<name>_stuffonly" (semantic labels alone)."""
    separated, stuff_only = f"{name}_separated", f"{name}_stuffonly"
    DatasetCatalog.register(
        separated,
        lambda: merge_to_panoptic(
            load_coco_json(instances_json, image_root, separated), load_sem_seg(sem_seg_root, image_root)
        ),
    )
    MetadataCatalog.get(separated).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        sem_seg_root=sem_seg_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        **metadata,
    )
    DatasetCatalog.register(stuff_only, lambda: load_sem_seg(sem_seg_root, image_root))
    MetadataCatalog.get(stuff_only).set(
        sem_seg_root=sem_seg_root, image_root=image_root, evaluator_type="sem_seg", ignore_label=255, **metadata
    )


def merge_to_panoptic(detection_dicts: list[dict], sem_seg_dicts: list[dict]) -> list[dict]:
    """Add the semantic label file of the same image to every record."""
    assert sem_seg_dicts, "There are no semantic labels to merge."
    labels = {record["file_name"]: record for record in sem_seg_dicts}
    return [{**copy.copy(record), **labels[record["file_name"]]} for record in detection_dicts]
