"""LVIS needs the `lvis` package and its tables of classes; the lite runtime has neither, so these names refuse."""
from detectron2._lite import refused

from .lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5_CATEGORIES
from .lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1_CATEGORIES
from .lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT as LVIS_V1_CATEGORY_IMAGE_COUNT

__all__ = ["load_lvis_json", "register_lvis_instances", "get_lvis_instances_meta"]

load_lvis_json = refused("load_lvis_json", __name__)
register_lvis_instances = refused("register_lvis_instances", __name__)
get_lvis_instances_meta = refused("get_lvis_instances_meta", __name__)
main = refused("main", __name__)
