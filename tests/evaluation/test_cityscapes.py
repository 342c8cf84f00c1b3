"""The evaluator of Cityscapes on generated streets: exact extremes, no stray files, no exits."""

import json
import math
import os
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances

from lowrank_d2.data import mini
from lowrank_d2.data.datasets import register_all
from lowrank_d2.data.segmentations import decode
from lowrank_d2.errors import DataError
from lowrank_d2.evaluation.cityscapes import CityscapesInstanceEvaluator

NAME = "cityscapes_instance_val"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    mini.build(folder, "cityscapes", train=1, val=4, seed=5)
    return folder


@pytest.fixture
def records(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    register_all()
    return DatasetCatalog.get(NAME)


def prediction(record: dict, shift: int = 0) -> dict:
    size = (record["height"], record["width"])
    objects = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
    masks = np.array([np.roll(decode(item["segmentation"], *size), shift, axis=1) for item in objects])
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(masks.reshape(-1, *size))
    instances.pred_classes = torch.tensor([item["category_id"] for item in objects], dtype=torch.int64)
    instances.scores = torch.full((len(objects),), 0.9)
    return {"instances": instances}


def evaluate(records, outputs):
    evaluator = CityscapesInstanceEvaluator(NAME)
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()


def test_perfect_masks_give_100_and_leave_nothing_behind(records, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(os.listdir(tmp_path))
    result = evaluate(records, [prediction(record) for record in records])["segm"]
    assert result["AP"] == pytest.approx(100) and result["AP50"] == pytest.approx(100)
    shown = {a["category_id"] for r in records for a in r["annotations"]}
    assert any(result[f"AP-{name}"] == pytest.approx(100) for name in MetadataCatalog.get(NAME).thing_classes)
    absent = [name for i, name in enumerate(MetadataCatalog.get(NAME).thing_classes) if i not in shown]
    assert all(math.isnan(result[f"AP-{name}"]) for name in absent)
    assert set(os.listdir(tmp_path)) == before


def test_no_detections_give_0(records):
    empty = [{"instances": prediction(record)["instances"][:0]} for record in records]
    assert evaluate(records, empty)["segm"]["AP"] == 0


def test_shifted_masks_lie_between(records):
    result = evaluate(records, [prediction(record, shift=2) for record in records])["segm"]
    assert 1 < result["AP"] < 95


def test_detections_that_are_all_ignored_give_0(records):
    """Every detection lies on the label void, so that none counts as wrong; the package alone fails with IndexError."""
    outputs = []
    for record in records:
        only = prediction(record)["instances"][:1]
        mask = torch.zeros_like(only.pred_masks)
        mask[:, -3:, 100:150] = True  # the ego vehicle
        only.pred_masks = mask
        outputs.append({"instances": only})
    assert evaluate(records, outputs)["segm"]["AP"] == 0


def test_predictions_are_kept_in_cocos_form(records, tmp_path):
    outputs = [prediction(record) for record in records]
    for output in outputs:
        output["instances"].pred_boxes = BitMasks(output["instances"].pred_masks).get_bounding_boxes()
    evaluator = CityscapesInstanceEvaluator(NAME, str(tmp_path / "inference"))
    evaluator.reset()
    evaluator.process(records, outputs)
    evaluator.evaluate()
    kept = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert len(kept) == sum(len(output["instances"]) for output in outputs) > 0
    first, objects = kept[0], [item for item in records[0]["annotations"] if not item["iscrowd"]]
    assert first["image_id"] == records[0]["image_id"] and first["file_name"] == os.path.basename(records[0]["file_name"])
    assert first["category_id"] == [24, 25, 26, 27, 28, 31, 32, 33][objects[0]["category_id"]]
    size = (records[0]["height"], records[0]["width"])
    assert (decode(first["segmentation"], *size) == decode(objects[0]["segmentation"], *size)).all()


def test_the_package_is_left_as_it_was(records):
    module = sys.modules["cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"]
    before = (module.np, module.printError, module.writeDict2JSON, dict(vars(module.args)))
    evaluate(records, [prediction(record) for record in records])
    assert module.np is np and before[1:3] == (module.printError, module.writeDict2JSON)
    assert all(vars(module.args)[key] is value for key, value in before[3].items() if key != "instLabels")


def test_a_missing_truth_file_is_an_error_with_its_name(records, root):
    evaluator = CityscapesInstanceEvaluator(NAME)
    evaluator.reset()
    lost = {**records[0], "file_name": records[0]["file_name"].replace("frankfurt_000000", "frankfurt_999999")}
    with pytest.raises(DataError, match="frankfurt_999999.*instanceIds.png is missing"):
        evaluator.process([lost], [prediction(records[0])])


def test_without_the_package_the_error_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
    with pytest.raises(DataError, match="pip install cityscapesScripts"):
        CityscapesInstanceEvaluator(NAME)
