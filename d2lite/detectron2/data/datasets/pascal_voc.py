"""Pascal VOC's annotations: one XML file an image."""
from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from typing import Sequence

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["load_voc_instances", "register_pascal_voc"]

CLASS_NAMES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)


def _read_object(element: ET.Element, class_names: Sequence[str]) -> dict:
    x0, y0, x1, y1 = (float(element.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
    return {
        "category_id": class_names.index(element.find("name").text),
        # VOC counts pixels from 1 and includes the last one.
        "bbox": [x0 - 1.0, y0 - 1.0, x1, y1],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Records of one split.

    Args:
        dirname: with "Annotations", "ImageSets/Main" and "JPEGImages".
        split: "train", "val", "trainval" or "test".
        class_names: their order gives category_id.
    """
    with PathManager.open(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")) as f:
        image_ids = f.read().split()
    records = []
    for image_id in image_ids:
        with PathManager.open(os.path.join(dirname, "Annotations", f"{image_id}.xml")) as f:
            tree = ET.parse(f)
        records.append(
            {
                "file_name": os.path.join(dirname, "JPEGImages", f"{image_id}.jpg"),
                "image_id": image_id,
                "height": int(tree.find("size/height").text),
                "width": int(tree.find("size/width").text),
                "annotations": [_read_object(element, list(class_names)) for element in tree.findall("object")],
            }
        )
    return records


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register one split; it is read when the dataset is used."""
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
