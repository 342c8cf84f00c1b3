"""Looking at a whole dataset before the first iteration: every record, every image header, one report."""

import os
from collections import Counter
from pathlib import Path
from typing import Callable, Iterable, Sequence

from detectron2.config import CfgNode
from tqdm import tqdm

from lowrank_d2.data.coco_json import CocoData, read_coco
from lowrank_d2.data.datasets.catalog import load
from lowrank_d2.data.image_files import MAX_PIXELS, BadImage, Header, read_header
from lowrank_d2.data.problems import Report
from lowrank_d2.errors import ConfigError, DataError

DROPPING = ("empty", "no-mask", "orphan", "outside", "too-few-points")  # kinds of warnings that cost annotations


def check_dataset(name: str, **options: object) -> CocoData:
    """Reads a registered dataset and all its image headers; `options` are those of `check_images`.

    What is wrong, even a missing folder, stands in the report of the result; nothing is raised for it.

    Raises:
        ConfigError: no dataset of that name.
    """
    return _with_images(lambda: load(name), name, options)


def check_json(
    json_file: str | Path, image_root: str | Path, *, skip_missing: bool = False, **options: object
) -> CocoData:
    """As `check_dataset`, for a COCO file and its image folder."""
    return _with_images(lambda: read_coco(json_file, image_root, skip_missing=skip_missing), str(json_file), options)


def check_config(cfg: CfgNode) -> None:
    """Checks everything that a run would read: DATASETS.TRAIN, DATASETS.TEST and how they fit together.

    Warnings are logged.

    Raises:
        DataError: with every error of every dataset.
        ConfigError: a dataset name that nobody registered.
    """
    options = {"exif": cfg.INPUT.EXIF, "max_pixels": cfg.INPUT.MAX_PIXELS}
    train = [check_dataset(name, **options) for name in cfg.DATASETS.TRAIN]
    val = [check_dataset(name, **options) for name in cfg.DATASETS.TEST]
    reports = [data.report for data in train + val]
    if not any(report.of("error") for report in reports):
        reports.append(check_together(train, val))
    for report in reports:
        report.log_warnings()
    failed = [str(_error(report)) for report in reports if report.of("error")]
    if failed:
        raise DataError("\n".join(dict.fromkeys(failed)))


def check_num_classes(num_classes: int, classes: Sequence[str], where: str = "the dataset") -> None:
    """Raises ConfigError when a number of classes that the user wrote is not that of the data."""
    if num_classes != len(classes):
        shown = ", ".join(list(classes)[:8]) + (", ..." if len(classes) > 8 else "")
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but {where} has {len(classes)} classes ({shown}). "
            "Drop the key: the number is taken from the data."
        )


def check_images(
    records: Iterable[dict], report: Report, *, exif: str = "apply", max_pixels: int = MAX_PIXELS, decode: bool = False
) -> None:
    """Compares every record with the header of its image.

    Args:
        exif: "apply" or "ignore"; decides which of the two sizes of a rotated photograph counts.
        max_pixels: larger images are errors; they are never decoded.
        decode: decode every image, not only those whose end marker is missing.
    """
    for record in tqdm(list(records), "reading image headers", unit="image", disable=None):
        try:
            header = read_header(record["file_name"], max_pixels, decode)
        except BadImage as error:
            what, fix = _UNUSABLE[error.kind]
            report.add("error", f"{error.kind}-image", str(error), what, fix)
            continue
        _compare_size(record, header, exif, report)
        _note_mode(record["file_name"], header.mode, report)


def check_together(train: Sequence[CocoData], val: Sequence[CocoData]) -> Report:
    """What only shows when train and validation data are seen side by side."""
    report = Report("DATASETS.TRAIN and DATASETS.TEST together")
    for data in train:
        _check_trainable(data, report)
    for data in val:
        if not any(record["annotations"] for record in data.records):
            report.add(
                "error",
                "val-empty",
                f"{data.report.subject}: {len(data.records)} images",
                "validation data without annotations",
                "Give annotated images, or no validation data",
            )
    if train and val:
        _check_overlap(train, val, report)
    return report


def _check_trainable(data: CocoData, report: Report) -> None:
    usable = sum(
        any(not annotation.get("iscrowd", 0) for annotation in record["annotations"]) for record in data.records
    )
    if not usable:
        crowds = sum(len(record["annotations"]) for record in data.records)
        warnings = [problem for problem in data.report.of("warning") if problem.kind in DROPPING]
        dropped = "".join(f"; {problem.what}: {problem.count}" for problem in warnings)
        report.add(
            "error",
            "nothing-to-train-on",
            f"{data.report.subject}: {len(data.records)} images, 0 usable ({crowds} crowds{dropped})",
            "nothing to train on: every image is empty or holds only crowds",
            "Annotate objects, with iscrowd 0",
        )


def _check_overlap(train: Sequence[CocoData], val: Sequence[CocoData], report: Report) -> None:
    paths = {os.path.realpath(record["file_name"]) for data in train for record in data.records}
    for data in val:
        for record in data.records:
            if os.path.realpath(record["file_name"]) in paths:
                report.add(
                    "warning",
                    "shared-image",
                    record["file_name"],
                    "validation images that are training images too",
                    "Take them out of one of the two",
                )
    trained, tested = _class_counts(train), _class_counts(val)
    for name in tested:
        if not trained[name]:
            report.add(
                "warning",
                "class-only-in-val",
                f"{name}: 0 in train, {tested[name]} in val",
                "classes that cannot be learned, having no training object",
                "Add training objects",
            )


def _class_counts(sets: Sequence[CocoData]) -> Counter:
    return Counter(
        data.classes[annotation["category_id"]]
        for data in sets
        if data.classes
        for record in data.records
        for annotation in record["annotations"]
    )


def _with_images(read: Callable[[], CocoData], subject: str, options: dict) -> CocoData:
    try:
        data = read()
    except ConfigError:
        raise
    except DataError as error:
        report = Report(subject)
        report.add("error", "unreadable-dataset", "", str(error))
        return CocoData([], [], [], report)
    check_images(data.records, data.report, **options)
    if not data.records and not data.report.of("error"):
        data.report.add("error", "no-images", subject, "no image is left: nothing to train on", "Complete the dataset")
    return data


def _error(report: Report) -> DataError:
    try:
        report.raise_errors()
    except DataError as error:
        return error
    raise AssertionError("called for a report without errors")


def _compare_size(record: dict, header: Header, exif: str, report: Report) -> None:
    if not record.get("height") or not record.get("width"):
        return
    written, real = (record["width"], record["height"]), header.size(exif)
    if written == real:
        return
    where = f"{record['file_name']}: record {written[0]} x {written[1]}, file {real[0]} x {real[1]}"
    other = "ignore" if exif == "apply" else "apply"
    if written == header.size(other):
        how = "without" if exif == "apply" else "with"
        report.add(
            "error",
            "exif-size",
            where,
            f"photographs annotated {how} the rotation of their EXIF tag",
            f"Set INPUT.EXIF {other} (check_dataset.py: --exif {other})",
        )
    else:
        report.add(
            "error",
            "size-mismatch",
            where,
            "images of another size than their record says",
            "Take the images that were annotated, or write the right width and height",
        )


def _note_mode(path: str, mode: str, report: Report) -> None:
    if mode.startswith("I") or mode == "F":
        report.add(
            "warning",
            "deep-image",
            f"{path}: mode {mode}",
            "16-bit or float images are scaled from their own range to 0..255",
            "Convert them to 8 bits to choose the range",
        )
    elif mode != "RGB":
        report.add(
            "info", "image-mode", f"{path}: mode {mode}", "grey, palette, CMYK or transparent images are read as RGB"
        )


_UNUSABLE = {
    "missing": ("images that are not there", "Complete the folder"),
    "not-a-file": ("image paths that are not a regular file", "Put image files there"),
    "unreadable": ("images that are damaged, cut off or no images", "Fetch them again or leave them out"),
    "too-large": ("images of too many pixels", "Make them smaller, or raise INPUT.MAX_PIXELS"),
}
