"""ZeroWaste-f: deformable waste on a conveyor belt, four materials; the final release with its own test split."""

from lowrank_d2.data.coco_json import CocoData, read_coco
from lowrank_d2.data.datasets.catalog import coco_metadata, locate, register

CLASSES = ("rigid_plastic", "cardboard", "metal", "soft_plastic")
COLOURS = [(0, 114, 189), (217, 140, 40), (150, 150, 160), (119, 172, 48)]
SPLITS = ("train", "val", "test")


def register_zerowaste() -> None:
    for split in SPLITS:
        register(
            f"zerowaste_{split}",
            lambda split=split: read(split),
            CLASSES,
            thing_colors=COLOURS,
            **coco_metadata(len(CLASSES)),
        )


def read(split: str) -> CocoData:
    places = ("zerowaste", "zerowaste/splits_final_deblurred")
    root = locate("ZeroWaste", places, (f"{split}/data", f"{split}/labels.json"))
    return read_coco(root / split / "labels.json", root / split / "data", classes=CLASSES)
