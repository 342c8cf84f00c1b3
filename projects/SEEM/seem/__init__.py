"""SEEM as a Detectron2 project: importing registers the model, `add_config` declares its keys."""
from seem.config import add_config
from seem.meta_arch import SEEM
from seem.weights import to_upstream

__all__ = ["SEEM", "add_config", "to_upstream"]
