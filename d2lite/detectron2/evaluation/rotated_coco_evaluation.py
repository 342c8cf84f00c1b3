"""Evaluating rotated boxes is not in the lite runtime; these names refuse when called."""
from pycocotools.cocoeval import COCOeval

from detectron2._lite import refused_class

from .coco_evaluation import COCOEvaluator

RotatedCOCOeval = refused_class("RotatedCOCOeval", __name__, COCOeval)
RotatedCOCOEvaluator = refused_class("RotatedCOCOEvaluator", __name__, COCOEvaluator)
