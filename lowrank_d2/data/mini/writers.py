"""Writing pictures and COCO files of a generated tree."""

import json
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lowrank_d2.data.mini.primitives import rasterise


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 RGB or grey, or uint16 grey; the suffix of `path` in any case chooses JPEG or PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".jpg":
        Image.fromarray(pixels).save(path, format="JPEG", quality=95)
    else:
        Image.fromarray(pixels).save(path, format="PNG", compress_level=3)


class CocoFile:
    """Collects the records of one COCO instance file.

    Args:
        categories: names in the order of their ids, which start at 1.
        first_id: first image and annotation id; published files differ here.
    """

    def __init__(self, categories: Sequence[str], first_id: int = 1):
        self.categories = list(categories)
        self.first_id = first_id
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add_image(self, file_name: str, height: int, width: int, **extra: object) -> int:
        image_id = self.first_id + len(self.images)
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width, **extra})
        return image_id

    def add_polygons(
        self, image_id: int, category: int, outlines: Sequence[np.ndarray], height: int, width: int
    ) -> None:
        """Adds an object by its outlines; `category` counts from 0."""
        mask = rasterise(outlines, height, width)
        polygons = [[round(float(v), 2) for v in outline.reshape(-1)] for outline in outlines]
        self._add(image_id, category, mask, polygons)

    def add_mask(self, image_id: int, category: int, mask: np.ndarray) -> None:
        """Adds an object as compressed run lengths; `category` counts from 0."""
        self._add(image_id, category, mask, _encoded(mask))

    def _add(self, image_id: int, category: int, mask: np.ndarray, segmentation: object) -> None:
        encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        self.annotations.append(
            {
                "id": self.first_id + len(self.annotations),
                "image_id": image_id,
                "category_id": category + 1,
                "bbox": [float(v) for v in coco_mask.toBbox(encoded)],
                "segmentation": segmentation,
                "area": int(coco_mask.area(encoded)),
                "iscrowd": 0,
            }
        )

    def save(self, path: Path, info: Mapping[str, object] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "info": dict(info or {"description": "generated"}),
            "licenses": [],
            "categories": [{"id": i + 1, "name": n, "supercategory": ""} for i, n in enumerate(self.categories)],
            "images": self.images,
            "annotations": self.annotations,
        }
        path.write_text(json.dumps(content), encoding="utf-8")


def _encoded(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
