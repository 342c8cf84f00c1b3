"""NDD20, the Northumberland Dolphin Dataset: one class, photographs from above and frames from below the water.

Published as two folders with equal file names and two VIA files of polylines. The paper's 1500/300 split was never
published; ours orders all images by a hash of their names. Bursts and video frames carry no dates, so near-duplicates
can stand on both sides of any such split.
"""

import hashlib
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from lowrank_d2.data.annotation_file import load_json
from lowrank_d2.data.coco_json import CocoData
from lowrank_d2.data.datasets.catalog import coco_metadata, locate, register
from lowrank_d2.data.image_files import BadImage, ImageFolder, read_header
from lowrank_d2.data.problems import Report
from lowrank_d2.data.segmentations import Flaw, examine
from lowrank_d2.errors import DataError

CLASSES = ("dolphin",)
FOLDERS = {"ABOVE": 0, "BELOW": 100_000}  # added to the number in the file name gives the image id
FULL = 1800  # from this many images on, the split is the paper's
OPEN = 0.1  # gap of a polyline relative to its size above which it is counted as not closed


def register_ndd20() -> None:
    for subset in ("", "_all"):
        for split in ("train", "val"):
            register(
                f"ndd20{subset}_{split}",
                lambda every=bool(subset), split=split: read(split, every),
                CLASSES,
                thing_colors=[(255, 196, 0)],
                **coco_metadata(1),
            )


def read(split: str, every: bool) -> CocoData:
    """Reads `split` ("train" or "val") of the paper's size, or with `every` of all images."""
    root = locate(
        "NDD20", ("ndd20", "ndd20/NDD20"), [part for name in FOLDERS for part in (name, f"{name}_LABELS.json")]
    )
    report = Report(f"ndd20{'_all' if every else ''}_{split} in {root}")
    entries = {}
    for name in FOLDERS:
        entries.update(_entries(root, name))
    folders = {name: ImageFolder(root / name) for name in FOLDERS}
    records = [_record(folders, key, entries[key], report) for key in split_names(list(entries), split, every)]
    usable = sorted((record for record in records if record), key=lambda record: record["image_id"])
    return CocoData(usable, list(CLASSES), [1], report)


def split_names(names: list[str], split: str, every: bool) -> list[str]:
    """The names (`FOLDER/file`) of one split, in the order of their hashes.

    With 1800 images or more, train is the first 1500 and val the next 300; over all images, val is the 880 from
    position 1500 on and train the rest, so that no train set overlaps any val set. With fewer, val is the last sixth.
    """
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"lowrank_d2/ndd20/v1/{name}".encode()).hexdigest())
    if len(ordered) < FULL:
        border = len(ordered) - round(len(ordered) / 6)
        return ordered[:border] if split == "train" else ordered[border:]
    if not every:
        return ordered[:1500] if split == "train" else ordered[1500:1800]
    return ordered[:1500] + ordered[2380:] if split == "train" else ordered[1500:2380]


def _entries(root: Path, folder: str) -> dict[str, dict]:
    """The VIA records of one folder by `FOLDER/file`."""
    path = root / f"{folder}_LABELS.json"
    content = load_json(path)
    try:
        return {f"{folder}/{entry['filename']}": entry for entry in content.values() if entry["regions"] is not None}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no VIA file: every entry needs filename and regions. Take the published one."
        ) from error


def _record(folders: dict[str, ImageFolder], name: str, entry: dict, report: Report) -> dict | None:
    folder, file_name = name.split("/", 1)
    try:
        path, _ = folders[folder].find(file_name)
        header = read_header(path)
        number = int(Path(file_name).stem)
    except BadImage as error:
        report.add(
            "error", f"{error.kind}-image", f"{name}: {error}", "images that cannot be used", "Unpack the archive again"
        )
        return None
    except ValueError:
        report.add("error", "file-name", name, "file names that are no numbers", "Unpack the archive again")
        return None
    record = {"file_name": path, "height": header.height, "width": header.width, "image_id": FOLDERS[folder] + number}
    annotations = []
    for position, region in enumerate(entry["regions"]):
        annotation = _annotation(region, f"{name} regions[{position}]", header.height, header.width, report)
        if annotation is not None:
            annotations.append(annotation)
    return {**record, "annotations": annotations}


def _annotation(region: dict, where: str, height: int, width: int, report: Report) -> dict | None:
    """One polyline, closed and filled."""
    try:
        shape = region["shape_attributes"]
        points = np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1)
        outline = examine([points.reshape(-1).tolist()], height, width)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Flaw) and not error.fatal:
            report.add("warning", error.kind, f"{where}: {error}", "regions without area are dropped")
        else:
            report.add(
                "error", "bad-region", f"{where}: {error!r}", "regions that are no polylines", "Mend or remove them"
            )
        return None
    size = np.ptp(points, axis=0).max()
    if np.abs(points[0] - points[-1]).max() > OPEN * max(size, 1):
        report.add("info", "open-polyline", where, "polylines that do not close are closed")
    return {
        "iscrowd": 0,
        "bbox": outline.bbox,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": outline.segmentation,
    }
