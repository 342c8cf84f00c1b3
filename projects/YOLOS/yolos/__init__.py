"""YOLOS as a Detectron2 project: importing registers model and datasets, `add_config` declares the model's keys."""
from yolos.coco_split import register_split
from yolos.config import add_config
from yolos.meta_arch import YOLOS

__all__ = ["YOLOS", "add_config"]

register_split()
