"""Cityscapes panoptic segmentation is not in the lite runtime; these names refuse when called."""
from detectron2._lite import refused

from .builtin_meta import CITYSCAPES_CATEGORIES

__all__ = ["CITYSCAPES_CATEGORIES", "register_all_cityscapes_panoptic"]

get_cityscapes_panoptic_files = refused("get_cityscapes_panoptic_files", __name__)
load_cityscapes_panoptic = refused("load_cityscapes_panoptic", __name__)
register_all_cityscapes_panoptic = refused("register_all_cityscapes_panoptic", __name__)
