"""The datasets by name. Registration touches no file; they lie below $DETECTRON2_DATASETS (see datasets/README.md)."""

from lowrank_d2.data.datasets.catalog import load
from lowrank_d2.data.datasets.cityscapes import register_cityscapes
from lowrank_d2.data.datasets.ndd20 import register_ndd20
from lowrank_d2.data.datasets.own import OwnData, register_json, register_own, split_records
from lowrank_d2.data.datasets.source import register_source
from lowrank_d2.data.datasets.wixray import register_wixray
from lowrank_d2.data.datasets.zerowaste import register_zerowaste

__all__ = ["OwnData", "load", "register_all", "register_json", "register_own", "split_records"]


def register_all() -> None:
    """Registers every dataset of ours; may be called again.

    Raises:
        ConfigError: one of the names belongs to another package.
    """
    register_ndd20()
    register_zerowaste()
    register_wixray()
    register_cityscapes()
    register_source()
