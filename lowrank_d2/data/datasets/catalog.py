"""Entering datasets into Detectron2's catalogs, and finding their files below $DETECTRON2_DATASETS."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Callable, Sequence

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from lowrank_d2.data.coco_json import CocoData
from lowrank_d2.data.problems import Report
from lowrank_d2.errors import ConfigError, DataError

VARIABLE = "DETECTRON2_DATASETS"


@dataclass(frozen=True)
class Source:
    """What stands in DatasetCatalog for a dataset of ours: `read` gives everything, calling gives the usable records.

    Raises:
        DataError: when called and the dataset has errors.
    """

    name: str
    read: Callable[[], CocoData]

    def __call__(self) -> list[dict]:
        data = self.read()
        data.report.raise_errors()
        data.report.log_warnings()
        return data.records


def register(name: str, read: Callable[[], CocoData], thing_classes: Sequence[str], **metadata: object) -> None:
    """Registers a dataset; `read` runs at every DatasetCatalog.get, so nothing on disk is touched now.

    A name of ours is registered anew in silence.

    Raises:
        ConfigError: the name belongs to somebody else.
    """
    if name in DatasetCatalog.list():
        owner = _owner(DatasetCatalog[name], MetadataCatalog.get(name))
        if not owner.startswith("lowrank_d2."):
            raise ConfigError(
                f"The dataset name {name!r} is registered already, by {owner}. Import lowrank_d2 before it, "
                "or let it choose another name."
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, Source(name, read))
    MetadataCatalog.get(name).set(thing_classes=list(thing_classes), **metadata)


def coco_metadata(count: int) -> dict:
    """Metadata of a dataset that COCO code evaluates, with category ids 1..count."""
    return {"evaluator_type": "coco", "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(count)}}


def load(name: str) -> CocoData:
    """All that is known of a registered dataset, ours or not.

    Raises:
        ConfigError: no dataset of that name.
        DataError: the files of somebody else's dataset are not there.
    """
    if name not in DatasetCatalog.list():
        near = get_close_matches(name, DatasetCatalog.list(), 3, 0.4)
        raise ConfigError(
            f"There is no dataset {name!r}. Near names: {', '.join(near) or 'none'}. Mend the name or register it."
        )
    entry = DatasetCatalog[name]
    if isinstance(entry, Source):
        return entry.read()
    try:
        records = entry()
    except FileNotFoundError as error:
        where = f"${VARIABLE} is {os.environ.get(VARIABLE, 'datasets')!r}"
        raise DataError(f"{error.filename} is missing ({where}). Put it there, or set the variable.") from error
    classes = list(MetadataCatalog.get(name).get("thing_classes", []))
    return CocoData(records, classes, list(range(len(classes))), Report(name))


def locate(dataset: str, places: Sequence[str], parts: Sequence[str]) -> Path:
    """The folder of a dataset below $DETECTRON2_DATASETS (default ./datasets).

    Args:
        dataset: its name, for messages.
        places: relative folders where it may lie; the most complete one counts.
        parts: relative paths that must exist inside.

    Raises:
        DataError: the root, the folder or a part is missing; with the variable, its value and the expected tree.
    """
    value = os.environ.get(VARIABLE, "datasets")
    root = Path(value).expanduser()
    said = f"${VARIABLE} is {value!r}" if VARIABLE in os.environ else f"${VARIABLE} is not set, so ./datasets is used"
    expected = f"{dataset} is expected in {root / places[0]} with {', '.join(parts)}"
    fix = "Set the variable or complete the folder; datasets/README.md shows every layout."
    try:
        os.scandir(root).close()
    except OSError as error:
        raise DataError(f"{said}, and that cannot be read as a folder: {error.strerror}. {expected}. {fix}") from error
    found = [root / place for place in places if (root / place).is_dir()]
    if not found:
        raise DataError(f"{said}, where {' and '.join(places)} is missing. {expected}. {fix}")
    folder = min(found, key=lambda place: len(_absent(place, parts)))
    if _absent(folder, parts):
        raise DataError(f"{said}; {folder} lacks {', '.join(_absent(folder, parts))}. {expected}. {fix}")
    return folder


def _absent(folder: Path, parts: Sequence[str]) -> list[str]:
    return [part for part in parts if not (folder / part).exists()]


def _owner(entry: Callable, metadata: Metadata) -> str:
    """The module that registered `entry`; a helper of Detectron2's says it for others, so the file is named too."""
    function = getattr(entry, "func", entry)  # functools.partial
    module = getattr(function, "__module__", None) or type(entry).__module__
    file = metadata.get("json_file", None)
    return f"{module} for {file}" if file and module.startswith("detectron2.") else module
