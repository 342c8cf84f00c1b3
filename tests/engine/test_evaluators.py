"""Which evaluator a dataset gets, the headline AP and the table."""
import math

import pytest
from detectron2.data import MetadataCatalog
from lowrank_d2.engine.evaluators import ap_table, build_evaluator, headline_ap
from lowrank_d2.errors import ConfigError
from lowrank_d2.evaluation.cityscapes import CityscapesInstanceEvaluator
from lowrank_d2.evaluation.coco import StreamedCOCOEvaluator

from tests.engine.tiny import register


@pytest.mark.parametrize("results, ap", [
    ({"bbox": {"AP": 10.0}, "segm": {"AP": 20.0}}, 20.0),
    ({"bbox": {"AP": 10.0}}, 10.0),
    ({"panoptic_seg": {"PQ": 1.0}, "other": {"AP": 3.0}}, 3.0),
    ({"first": {"bbox": {"AP": 1.0}, "segm": {"AP": 2.0}}, "second": {"segm": {"AP": 9.0}}}, 2.0),
    ({"segm": {"AP": math.nan}}, None),
    ({}, None),
])
def test_headline(results, ap):
    assert headline_ap(results) == ap


def test_table_shows_masks_first():
    lines = ap_table({"bbox": {"AP": 10.0, "AP50": 20.0, "AP75": 5.0}, "segm": {"AP": 1.5, "AP50": 2.0}}).splitlines()
    assert lines[2].split() == ["masks", "1.50", "2.00", "-"] and lines[3].split() == ["boxes", "10.00", "20.00", "5.00"]
    assert "tiny boxes" in ap_table({"tiny": {"bbox": {"AP": 1.0}}})
    assert ap_table({}) == "no AP was computed"


def test_evaluators_by_type(tmp_path):
    name = register(tmp_path / "data")
    assert isinstance(build_evaluator(name, str(tmp_path)), StreamedCOCOEvaluator)
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).evaluator_type = "lvis"
    with pytest.raises(ConfigError, match="'lvis'"):
        build_evaluator(name, str(tmp_path))
    assert isinstance(build_evaluator("cityscapes_instance_val", str(tmp_path)), CityscapesInstanceEvaluator)
