"""The ground truth that COCO evaluation reads: the records as they were repaired, not the user's file."""

import hashlib
import json
from pathlib import Path
from typing import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from lowrank_d2.data.segmentations import encode
from lowrank_d2.files import write_text


def write_evaluation_json(name: str, folder: str | Path) -> Path:
    """Writes dataset `name` as a COCO file below `folder` and makes it the dataset's `json_file`, which COCOEvaluator
    reads.

    Annotation ids count from 1, areas come from the masks (or boxes, where there are none), images without objects stay.
    The file's name holds a fingerprint of its content, so that a changed dataset never meets an old file.

    Returns:
        The path of the file.
    """
    metadata = MetadataCatalog.get(name)
    ids = {index: key for key, index in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    text = json.dumps(as_coco(DatasetCatalog.get(name), metadata.thing_classes, ids))
    path = Path(folder) / f"{name}_truth_{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not path.exists():
        write_text(path, text)
    if metadata.get("json_file", str(path)) != str(path):
        del metadata.json_file  # metadata is write-once
    metadata.json_file = str(path)
    return path


def as_coco(records: Sequence[dict], classes: Sequence[str], ids: dict[int, int] | None = None) -> dict:
    """Records in Detectron2's form as the content of a COCO file; `ids` gives the category id of each contiguous
    index."""
    annotations = []
    for record in records:
        for item in record["annotations"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": (ids or {}).get(item["category_id"], item["category_id"]),
                    "iscrowd": item.get("iscrowd", 0),
                    **_extent(item, record),
                }
            )
    images = [
        {
            "id": record["image_id"],
            "file_name": record["file_name"],
            "height": record["height"],
            "width": record["width"],
        }
        for record in records
    ]
    categories = [{"id": (ids or {}).get(index, index), "name": name} for index, name in enumerate(classes)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _extent(item: dict, record: dict) -> dict:
    """Box, area and, where there is one, the mask of an annotation."""
    if "segmentation" not in item:
        box = BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYWH_ABS)
        return {"bbox": [float(value) for value in box], "area": float(box[2] * box[3])}
    rle = encode(item["segmentation"], record["height"], record["width"])
    return {
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "segmentation": item["segmentation"],
    }
