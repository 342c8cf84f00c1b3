"""A user's own COCO files as datasets, without code: `register_own` for training, `register_json` for one file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import numpy as np

from lowrank_d2.data.coco_json import CocoData, read_coco
from lowrank_d2.data.datasets.catalog import register
from lowrank_d2.data.problems import Report
from lowrank_d2.errors import DataError

TRAIN, VAL = "own_train", "own_val"


@dataclass(frozen=True)
class OwnData:
    """Names under which the two splits are registered, and the classes of both."""

    train: str
    val: str
    classes: list[str]


def register_own(
    train_json: str | Path,
    train_images: str | Path,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    *,
    seed: int = 0,
    skip_missing: bool = False,
    masks: bool = True,
) -> OwnData:
    """Registers own data as `own_train` and `own_val`; without a validation file a seeded tenth is held out.

    Args:
        masks: objects need one; see `read_coco`.

    Raises:
        DataError: a file cannot be used, the validation categories differ by name, or there is only one image to split.
    """
    options = {"skip_missing": skip_missing, "masks": masks}
    data = read_coco(train_json, train_images, **options)
    if val_json is None:
        if len(data.records) < 2:
            data.report.raise_errors()  # which may be why so few are left
            if not data.records:
                why = "; ".join(map(str, data.report.of("warning")))
                raise DataError(f"{train_json} has no usable image, so there is nothing to train on. {why}".strip())
            raise DataError(
                f"{train_json} has 1 image, too few to hold one out for validation. "
                "Give validation data with --val-json and --val-images."
            )
        train, val = split_records(data.records, seed)
        if len(data.records) < 10:
            data.report.add(
                "warning",
                "few-images",
                f"{len(data.records)} images: {len(train)} train, {len(val)} val",
                "a validation set of so few images says little",
                "Give a validation file with --val-json",
            )
        _register(TRAIN, CocoData(train, data.classes, data.category_ids, data.report))
        _register(VAL, CocoData(val, data.classes, data.category_ids, Report(f"{train_json} (held out)")))
    else:
        _register(TRAIN, data)
        register_json(VAL, val_json, val_images or train_images, classes=data.classes, **options)
    return OwnData(TRAIN, VAL, data.classes)


def register_json(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    skip_missing: bool = False,
    masks: bool = True,
) -> CocoData:
    """Registers one COCO file under `name` and returns what was read; see `read_coco` for the options and the errors."""
    data = read_coco(json_file, image_root, classes=classes, skip_missing=skip_missing, masks=masks)
    _register(name, data)
    return data


def split_records(records: Sequence[dict], seed: int = 0, share: float = 0.1) -> tuple[list[dict], list[dict]]:
    """Divides records into (train, val) at random but repeatably, by the seed, the image ids and which have objects.

    Images with and without objects are divided apart, so that val holds its share of both and always an object when
    two images have some. There must be two records or more.
    """
    ordered = sorted(records, key=lambda record: record["image_id"])
    random = np.random.default_rng(seed)
    held_out: set[int] = set()
    for annotated in (True, False):
        places = [place for place, record in enumerate(ordered) if bool(record["annotations"]) == annotated]
        count = max(round(share * len(places)), int(annotated and len(places) > 1))
        held_out.update(places[index] for index in random.permutation(len(places))[:count])
    held_out = held_out or {places[-1]}
    train = [record for place, record in enumerate(ordered) if place not in held_out]
    return train, [record for place, record in enumerate(ordered) if place in held_out]


def _register(name: str, data: CocoData) -> None:
    mapping = {key: index for index, key in enumerate(data.category_ids)}
    register(
        name,
        lambda: replace(data, report=data.report.copy()),
        data.classes,
        evaluator_type="coco",
        thing_dataset_id_to_contiguous_id=mapping,
    )
