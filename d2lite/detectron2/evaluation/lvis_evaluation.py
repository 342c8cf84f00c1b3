"""LVIS evaluation is not in the lite runtime; these names refuse when called."""
from detectron2._lite import refused_class

from .evaluator import DatasetEvaluator

LVISEvaluator = refused_class("LVISEvaluator", __name__, DatasetEvaluator)
