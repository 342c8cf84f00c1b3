import json

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

TRUTH = np.zeros((20, 20), np.uint8)
TRUTH[:, 10:] = 1
TRUTH[:5] = 255


@pytest.fixture
def records(tmp_path):
    Image.fromarray(TRUTH).save(tmp_path / "a.png")
    records = [{"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}]
    DatasetCatalog.register("test_sem_seg", lambda: records)
    MetadataCatalog.get("test_sem_seg").set(stuff_classes=["left", "right", "absent"], ignore_label=255)
    yield records
    DatasetCatalog.remove("test_sem_seg")
    MetadataCatalog.remove("test_sem_seg")


def run(records, labels, **kwargs):
    evaluator = SemSegEvaluator("test_sem_seg", distributed=False, **kwargs)
    evaluator.reset()
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), 3).permute(2, 0, 1).float()
    evaluator.process(records, [{"sem_seg": scores}])
    return evaluator.evaluate()["sem_seg"]


def test_perfect_where_labelled(records):
    labels = TRUTH % 255
    results = run(records, labels)
    for metric in ("mIoU", "fwIoU", "mACC", "pACC", "IoU-left", "ACC-right"):
        assert results[metric] == pytest.approx(100)
    assert np.isnan(results["IoU-absent"]) and np.isnan(results["ACC-absent"])


def test_a_moved_border(records):
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 12:] = 1  # two of the ten right columns are called left
    results = run(records, labels)
    assert results["IoU-left"] == pytest.approx(100 * 10 / 12)
    assert results["IoU-right"] == pytest.approx(100 * 8 / 10)
    assert results["mIoU"] == pytest.approx((100 * 10 / 12 + 80) / 2)
    assert results["pACC"] == pytest.approx(90)
    assert results["mACC"] == pytest.approx((100 + 80) / 2)


def test_files(records, tmp_path):
    run(records, TRUTH % 255, output_dir=str(tmp_path / "out"))
    predictions = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [(p["file_name"], p["category_id"]) for p in predictions] == [("a.jpg", 0), ("a.jpg", 1)]
    assert (tmp_path / "out" / "sem_seg_evaluation.pth").exists()


def test_number_of_classes_must_fit(records):
    with pytest.raises(AssertionError):
        SemSegEvaluator("test_sem_seg", distributed=False, num_classes=5)
