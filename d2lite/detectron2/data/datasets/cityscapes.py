"""Cityscapes: semantic labels. Its instances, which need polygons ordered by depth, refuse."""
from __future__ import annotations

import os
from glob import glob

from PIL import Image

from detectron2._lite import refused

load_cityscapes_instances = refused("load_cityscapes_instances", __name__)
main = refused("main", __name__)


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[dict]:
    """Records (file_name, sem_seg_file_name, height, width) of all cities below a split.

    Args:
        image_dir: e.g. ".../leftImg8bit/train". gt_dir: e.g. ".../gtFine/train", with the *_labelTrainIds.png that
            cityscapesscripts' createTrainIdLabelImgs writes.

    Raises:
        FileNotFoundError: there are no images, or a label file is missing.
    """
    suffix = "leftImg8bit.png"
    images = sorted(glob(os.path.join(image_dir, "*", f"*{suffix}")))
    if not images:
        raise FileNotFoundError(f"No <city>/*{suffix} lies below {image_dir}.")
    records = []
    for image in images:
        city, name = image.split(os.sep)[-2:]
        labels = os.path.join(gt_dir, city, name[: -len(suffix)] + "gtFine_labelTrainIds.png")
        if not os.path.isfile(labels):
            raise FileNotFoundError(
                f"{labels} is missing; cityscapesscripts/preparation/createTrainIdLabelImgs.py writes such files."
            )
        with Image.open(image) as picture:  # reads the header only
            width, height = picture.size
        records.append({"file_name": image, "sem_seg_file_name": labels, "height": height, "width": width})
    return records
