"""YOLOS as a Detectron2 project: importing registers the meta-architecture, `add_config` declares its keys."""
from yolos.config import add_config
from yolos.meta_arch import YOLOS

__all__ = ["YOLOS", "add_config"]
