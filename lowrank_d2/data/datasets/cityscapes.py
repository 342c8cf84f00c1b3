"""Cityscapes instances: eight kinds of road users, read from gtFine's instanceIds.

Detectron2's own loader needs packages that are not published, fills holes and starts a pool of processes. Here every
image is decoded once; the run lengths are kept in a cache file beside other user caches, valid while size and time of
the PNG stay.
"""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lowrank_d2.data.coco_json import CocoData
from lowrank_d2.data.datasets.catalog import VARIABLE, locate, register
from lowrank_d2.data.problems import Report
from lowrank_d2.data.segmentations import encode_ids
from lowrank_d2.errors import OutputError
from lowrank_d2.files import write_json

# Cityscapes' id of each class, in the order of the contiguous index, and its official colour.
LABELS = {
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CLASSES = tuple(LABELS)
IMAGE_END, TRUTH_END = "_leftImg8bit.png", "_gtFine_instanceIds.png"
CACHE_FORMAT = 1

logger = logging.getLogger(__name__)


def register_cityscapes() -> None:
    for split in ("train", "val"):
        root = Path(os.environ.get(VARIABLE, "datasets")).expanduser() / "cityscapes"
        register(
            f"cityscapes_instance_{split}",
            lambda split=split: read(split),
            CLASSES,
            thing_colors=[colour for _, colour in LABELS.values()],
            evaluator_type="cityscapes_instance",
            image_dir=str(root / "leftImg8bit" / split),
            gt_dir=str(root / "gtFine" / split),
        )


def read(split: str) -> CocoData:
    """Reads one split; groups of a class become one crowd annotation each."""
    root = locate("Cityscapes", ("cityscapes",), (f"leftImg8bit/{split}", f"gtFine/{split}"))
    images, truth = root / "leftImg8bit" / split, root / "gtFine" / split
    _point_metadata(f"cityscapes_instance_{split}", images, truth)
    report = Report(f"cityscapes_instance_{split} in {root}")
    pairs = []
    for path in sorted(images.glob(f"*/*{IMAGE_END}")):
        label = truth / path.parent.name / (path.name[: -len(IMAGE_END)] + TRUTH_END)
        if label.is_file():
            pairs.append((path, label))
        else:
            report.add(
                "error",
                "missing-truth",
                str(label),
                "images without instanceIds",
                "Unpack gtFine_trainvaltest.zip again",
            )
    if not pairs:
        report.add(
            "error",
            "missing-image",
            str(images),
            f"no CITY/*{IMAGE_END} is there",
            "Unpack leftImg8bit_trainvaltest.zip",
        )
    records = []
    for number, ((path, _), entry) in enumerate(
        zip(pairs, _instances(root, split, [label for _, label in pairs], report)), 1
    ):
        if entry is not None:
            annotations = [_annotation(value, rle) for value, rle in entry["instances"].items()]
            height, width = entry["size"]
            records.append(
                {
                    "file_name": str(path),
                    "height": height,
                    "width": width,
                    "image_id": number,
                    "annotations": annotations,
                }
            )
    return CocoData(records, list(CLASSES), list(range(len(CLASSES))), report)


def _annotation(value: str, rle: dict) -> dict:
    """`value` is the pixel value: 1000 * class id + number for an instance, the class id itself for a group."""
    identity = int(value)
    ids = [label_id for label_id, _ in LABELS.values()]
    crowd = identity < 1000
    return {
        "iscrowd": int(crowd),
        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": ids.index(identity if crowd else identity // 1000),
        "segmentation": rle,
    }


def _instances(root: Path, split: str, labels: list[Path], report: Report) -> list[dict | None]:
    """For every instanceIds file {"size": [h, w], "instances": {pixel value: run lengths}}, None for an unreadable
    one."""
    cache_file = (
        _cache_folder() / f"cityscapes_{split}_{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    )
    known = _read_cache(cache_file)
    stamps = [f"{path.parent.name}/{path.name}:{(s := path.stat()).st_size}:{s.st_mtime_ns}" for path in labels]
    new = [(stamp, path) for stamp, path in zip(stamps, labels) if stamp not in known]
    if new:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            decoded = pool.map(lambda item: _decode(item[1]), new)
            for (stamp, path), entry in zip(new, tqdm(decoded, f"reading {split} labels", len(new), disable=None)):
                if isinstance(entry, Exception):
                    report.add(
                        "error",
                        "unreadable-truth",
                        f"{path}: {entry}",
                        "instanceIds that cannot be read",
                        "Unpack gtFine again",
                    )
                else:
                    known[stamp] = entry
        _write_cache(cache_file, {stamp: known[stamp] for stamp in stamps if stamp in known})
    return [known.get(stamp) for stamp in stamps]


def _decode(path: Path) -> dict | Exception:
    try:
        with Image.open(path) as image:
            ids = np.asarray(image).astype(np.int32)
    except (OSError, ValueError, SyntaxError) as error:
        return error
    wanted = [label_id for label_id, _ in LABELS.values()]
    ids = np.where(np.isin(np.where(ids >= 1000, ids // 1000, ids), wanted), ids, 0)
    return {"size": list(ids.shape), "instances": {str(value): rle for value, rle in encode_ids(ids).items()}}


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lowrank_d2"


def _read_cache(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["files"]) if content["format"] == CACHE_FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_cache(path: Path, files: dict) -> None:
    try:
        write_json(path, {"format": CACHE_FORMAT, "files": files})
    except OutputError as error:
        logger.info("The labels are read anew each time: %s", error)


def _point_metadata(name: str, images: Path, truth: Path) -> None:
    """Follows a change of $DETECTRON2_DATASETS since the import; Detectron2's metadata is write-once otherwise."""
    metadata = MetadataCatalog.get(name)
    for key, value in (("image_dir", str(images)), ("gt_dir", str(truth))):
        if metadata.get(key, value) != value:
            delattr(metadata, key)
        setattr(metadata, key, value)
