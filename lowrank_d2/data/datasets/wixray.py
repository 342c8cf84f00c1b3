"""WIXray: waste items under X-rays, twelve classes. Masks are amodal: overlapping objects both own the pixels they
share."""

from lowrank_d2.data.coco_json import CocoData, read_coco
from lowrank_d2.data.datasets.catalog import coco_metadata, locate, register

# Spelled as in the published annotation files.
CLASSES = (
    "Recyclabel_PlasticBottle",
    "ResidualWaste_MealBox",
    "Recyclabel_Can",
    "Recyclabel_Carton",
    "Recyclabel_Glassbottle",
    "Recyclabel_Stick",
    "FoodWaste",
    "Recyclabel_Tableware",
    "ResidualWaste_HeatingPad",
    "ResidualWaste_Desiccant",
    "HazardousWaste_Battery",
    "HazardousWaste_Bulb",
)


def register_wixray() -> None:
    for split in ("train", "val"):
        register(f"wixray_{split}", lambda split=split: read(split), CLASSES, **coco_metadata(len(CLASSES)))


def read(split: str) -> CocoData:
    labels, images = f"annotations/instances_{split}2017.json", f"images/{split}2017"
    root = locate("WIXray", ("wixray",), (labels, images))
    return read_coco(root / labels, root / images, classes=CLASSES)
