"""Datasets that are registered from the start, below $DETECTRON2_DATASETS (default: ./datasets).

Of a full Detectron2's 52 names these are COCO's instances and person keypoints (2014, 2017), and the metadata of
Cityscapes' semantic labels; the other `register_all_*` refuse. Nothing is read before a dataset is used.
"""
import os
from functools import partial

from detectron2._lite import refused

from ..catalog import DatasetCatalog, MetadataCatalog
from .builtin_meta import ADE20K_SEM_SEG_CATEGORIES, _get_builtin_metadata
from .cityscapes import load_cityscapes_semantic
from .cityscapes_panoptic import register_all_cityscapes_panoptic
from .coco import register_coco_instances

__all__ = ["ADE20K_SEM_SEG_CATEGORIES", "register_all_cityscapes_panoptic"]

# Split -> folder of images; minival and valminusminival are parts of val2014, the 100 are of val2017.
_INSTANCE_SPLITS = {
    "2014_train": "train2014",
    "2014_val": "val2014",
    "2014_minival": "val2014",
    "2014_valminusminival": "val2014",
    "2017_train": "train2017",
    "2017_val": "val2017",
    "2017_val_100": "val2017",
}


def _coco_json(kind: str, split: str) -> str:
    """"2017_val_100" -> "coco/annotations/instances_val2017_100.json"."""
    year, part, *rest = split.split("_")
    return f"coco/annotations/{'_'.join([kind, part + year, *rest])}.json"


_PREDEFINED_SPLITS_COCO = {
    "coco": {
        **{f"coco_{s}": (f"coco/{folder}", _coco_json("instances", s)) for s, folder in _INSTANCE_SPLITS.items()},
        "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
        "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    },
    "coco_person": {
        f"keypoints_coco_{s}": (f"coco/{folder}", _coco_json("person_keypoints", s))
        for s, folder in _INSTANCE_SPLITS.items()
    },
}


def register_all_coco(root: str) -> None:
    """coco_{2014,2017}_* and keypoints_coco_*, below root/coco."""
    for kind, splits in _PREDEFINED_SPLITS_COCO.items():
        for name, (images, annotations) in splits.items():
            metadata = _get_builtin_metadata(kind)
            register_coco_instances(name, metadata, os.path.join(root, annotations), os.path.join(root, images))


def register_all_cityscapes(root: str) -> None:
    """The metadata of cityscapes_fine_sem_seg_{train,val,test}; reading these datasets refuses."""
    for split in ("train", "val", "test"):
        name = f"cityscapes_fine_sem_seg_{split}"
        folders = {kind: os.path.join(root, "cityscapes", kind, split) for kind in ("leftImg8bit", "gtFine")}
        DatasetCatalog.register(name, partial(load_cityscapes_semantic, *folders.values()))
        MetadataCatalog.get(name).set(
            image_dir=folders["leftImg8bit"], gt_dir=folders["gtFine"], evaluator_type="cityscapes_sem_seg",
            ignore_label=255, **_get_builtin_metadata("cityscapes"),
        )


register_all_ade20k = refused("register_all_ade20k", __name__)
register_all_lvis = refused("register_all_lvis", __name__)
register_all_pascal_voc = refused("register_all_pascal_voc", __name__)

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_cityscapes(_root)
