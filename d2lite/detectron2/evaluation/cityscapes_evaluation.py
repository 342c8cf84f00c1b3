"""Cityscapes evaluation needs the package cityscapesscripts; it is not in the lite runtime, so these names refuse."""
from detectron2._lite import refused_class

from .evaluator import DatasetEvaluator

CityscapesEvaluator = refused_class("CityscapesEvaluator", __name__, DatasetEvaluator)
CityscapesInstanceEvaluator = refused_class("CityscapesInstanceEvaluator", __name__, DatasetEvaluator)
CityscapesSemSegEvaluator = refused_class("CityscapesSemSegEvaluator", __name__, DatasetEvaluator)
