"""The generated source domain of the small base: six opaque textured shapes (see lowrank_d2/data/mini/source.py)."""

from lowrank_d2.data.coco_json import CocoData, read_coco
from lowrank_d2.data.datasets.catalog import coco_metadata, locate, register

CLASSES = ("ball", "box", "wedge", "star", "cross", "blob")


def register_source() -> None:
    for split in ("train", "val"):
        register(f"source_{split}", lambda split=split: read(split), CLASSES, **coco_metadata(len(CLASSES)))


def read(split: str) -> CocoData:
    labels = f"annotations/instances_{split}.json"
    root = locate("The source domain (datasets/make_mini.py --datasets source)", ("source",), (labels, split))
    return read_coco(root / labels, root / split, classes=CLASSES)
