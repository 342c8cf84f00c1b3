"""Pascal VOC evaluation is not in the lite runtime; these names refuse when called."""
from detectron2._lite import refused, refused_class

from .evaluator import DatasetEvaluator

PascalVOCDetectionEvaluator = refused_class("PascalVOCDetectionEvaluator", __name__, DatasetEvaluator)
parse_rec = refused("parse_rec", __name__)
voc_ap = refused("voc_ap", __name__)
voc_eval = refused("voc_eval", __name__)
