import json
import math

import numpy as np
import pytest
import torch

import detectron2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, Instances

is_lite = getattr(detectron2, "__runtime__", None) == "lite"
mended = pytest.mark.skipif(not is_lite, reason="a defect of Detectron2 that the lite runtime mends")

SIZE = 40, 60
BOXES = {1: [[5, 5, 25, 25], [30, 10, 50, 30]], 2: [[10, 2, 40, 38]]}
CLASSES = {1: [0, 1], 2: [1]}


def polygon(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@pytest.fixture
def content():
    annotations = []
    for image_id, boxes in BOXES.items():
        for (x0, y0, x1, y1), category in zip(boxes, CLASSES[image_id]):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": [10, 20][category],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [polygon(x0, y0, x1, y1)],
                }
            )
    return {
        "info": {},
        "images": [{"id": i, "height": 40, "width": 60, "file_name": f"{i}.jpg"} for i in BOXES],
        "categories": [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}],
        "annotations": annotations,
    }


@pytest.fixture
def dataset(tmp_path, content):
    name = "test_coco_evaluation"

    def register():
        (tmp_path / "gt.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / "gt.json"), "")
        DatasetCatalog.get(name)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def predictions(image_id, shift=0, classes=None, masks=True):
    boxes = torch.tensor(BOXES[image_id], dtype=torch.float32) + shift
    instances = Instances(SIZE, pred_boxes=Boxes(boxes), scores=torch.linspace(0.9, 0.5, len(boxes)))
    instances.pred_classes = torch.tensor(CLASSES[image_id] if classes is None else classes)
    if masks:
        bitmaps = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for bitmap, (x0, y0, x1, y1) in zip(bitmaps, boxes.int().tolist()):
            bitmap[y0:y1, x0:x1] = True
        instances.pred_masks = bitmaps
    return {"instances": instances}


def run(evaluator, image_ids=(1, 2), **kwargs):
    evaluator.reset()
    for image_id in image_ids:
        evaluator.process([{"image_id": image_id}], [predictions(image_id, **kwargs)])
    return evaluator.evaluate()


class TestResults:
    def test_perfect(self, dataset):
        results = run(COCOEvaluator(dataset(), distributed=False))
        assert list(results) == ["bbox", "segm"]
        for metrics in results.values():
            for metric in ("AP", "AP50", "AP75", "APs", "AP-a", "AP-b"):
                assert metrics[metric] == pytest.approx(100)
            assert math.isnan(metrics["APl"])  # there is nothing large

    def test_shifted_by_two_pixels(self, dataset):
        bbox = run(COCOEvaluator(dataset(), tasks=("bbox",), distributed=False), shift=2)["bbox"]
        # IoU of class a: 18^2 / (2 * 400 - 18^2) = 0.68: counts at 0.5, 0.55, 0.6 and 0.65.
        assert bbox["AP-a"] == pytest.approx(40)
        assert bbox["AP50"] == pytest.approx(100)

    def test_only_boxes(self, dataset):
        assert list(run(COCOEvaluator(dataset(), distributed=False), masks=False)) == ["bbox"]

    def test_a_missed_image_costs(self, dataset):
        metrics = run(COCOEvaluator(dataset(), distributed=False), image_ids=[1])["bbox"]
        assert metrics["AP-a"] == pytest.approx(100)
        assert 45 < metrics["AP-b"] < 55

    def test_some_images_only(self, dataset):
        evaluator = COCOEvaluator(dataset(), distributed=False)
        run(evaluator, image_ids=[1])
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [predictions(1)])
        assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100)

    @mended
    def test_the_limit_of_detections(self, dataset):
        evaluator = COCOEvaluator(dataset(), tasks=("bbox",), distributed=False, max_dets_per_image=1)
        assert run(evaluator)["bbox"]["AP"] == pytest.approx(100)  # the limit is one for each class
        evaluator.reset()
        doubled = Instances.cat([predictions(2, shift=9)["instances"], predictions(2)["instances"]])
        doubled.scores = torch.tensor([0.9, 0.5])
        evaluator.process([{"image_id": 2}], [{"instances": doubled}])
        assert evaluator.evaluate()["bbox"]["AP75"] == pytest.approx(0)

    @mended
    def test_evaluating_twice(self, dataset):
        evaluator = COCOEvaluator(dataset(), distributed=False)
        first = run(evaluator)
        assert evaluator.evaluate()["bbox"]["AP"] == first["bbox"]["AP"]


class TestNothing:
    def test_nothing_processed(self, dataset):
        evaluator = COCOEvaluator(dataset(), distributed=False)
        evaluator.reset()
        assert evaluator.evaluate() == {}

    def test_nothing_detected(self, dataset):
        evaluator = COCOEvaluator(dataset(), distributed=False)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": predictions(1)["instances"][:0]}])
        assert all(math.isnan(value) for value in evaluator.evaluate()["bbox"].values())

    def test_unlabelled(self, dataset, content, tmp_path):
        del content["annotations"]
        evaluator = COCOEvaluator(dataset(), distributed=False, output_dir=str(tmp_path / "out"))
        assert run(evaluator) == {}
        assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 3


class TestFiles:
    def test_outputs(self, dataset, tmp_path):
        run(COCOEvaluator(dataset(), distributed=False, output_dir=str(tmp_path / "out")))
        results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
        assert [(r["image_id"], r["category_id"]) for r in results] == [(1, 10), (1, 20), (2, 20)]
        assert results[0]["bbox"] == [5, 5, 20, 20]
        assert len(torch.load(tmp_path / "out" / "instances_predictions.pth", weights_only=True)) == 2

    def test_unknown_class(self, dataset):
        with pytest.raises(AssertionError):
            run(COCOEvaluator(dataset(), distributed=False), image_ids=[2], classes=[2])

    @mended
    def test_missing_area_and_iscrowd(self, dataset, content):
        for annotation in content["annotations"]:
            del annotation["iscrowd"], annotation["area"]
        assert run(COCOEvaluator(dataset(), distributed=False))["segm"]["APs"] == pytest.approx(100)


class TestWithoutJson:
    @pytest.fixture
    def records(self):
        records = [
            {
                "image_id": image_id,
                "file_name": f"{image_id}.jpg",
                "height": 40,
                "width": 60,
                "annotations": [
                    {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "segmentation": [polygon(*box)]}
                    for box, c in zip(BOXES[image_id], CLASSES[image_id])
                ],
            }
            for image_id in BOXES
        ]
        DatasetCatalog.register("test_records", lambda: records)
        MetadataCatalog.get("test_records").thing_classes = ["a", "b"]
        yield records
        DatasetCatalog.remove("test_records")
        MetadataCatalog.remove("test_records")

    def test_converts(self, records, tmp_path):
        results = run(COCOEvaluator("test_records", distributed=False, output_dir=str(tmp_path)))
        assert results["segm"]["AP"] == pytest.approx(100)
        assert (tmp_path / "test_records_coco_format.json").exists()

    @mended
    def test_sees_changed_records(self, records, tmp_path):
        run(COCOEvaluator("test_records", distributed=False, output_dir=str(tmp_path)))
        records[0]["annotations"].pop(0)
        results = run(COCOEvaluator("test_records", distributed=False, output_dir=str(tmp_path)))
        assert math.isnan(results["bbox"]["AP-a"])

    def test_needs_a_place(self, records):
        with pytest.raises(ValueError):
            COCOEvaluator("test_records", distributed=False)


def test_instances_to_json():
    instances = predictions(1)["instances"]
    instances.pred_keypoints = torch.ones(2, 1, 3)
    first, second = instances_to_coco_json(instances, 7)
    assert (first["image_id"], first["category_id"], first["bbox"]) == (7, 0, [5, 5, 20, 20])
    assert first["score"] == pytest.approx(0.9)
    assert first["segmentation"]["size"] == [40, 60] and isinstance(first["segmentation"]["counts"], str)
    assert first["keypoints"] == [0.5, 0.5, 1.0]
    assert json.loads(json.dumps(second))["category_id"] == 1
    if is_lite:  # a full Detectron2 moves the caller's keypoints
        assert instances.pred_keypoints[0, 0, 0] == 1
    assert instances_to_coco_json(instances[:0], 7) == []


def test_keypoints(dataset, content):
    for annotation in content["annotations"]:
        x, y = annotation["bbox"][:2]
        annotation["keypoints"] = [x + 1, y + 1, 2] * 17
        annotation["num_keypoints"] = 17
    evaluator = COCOEvaluator(dataset(), distributed=False, kpt_oks_sigmas=(0.05,) * 17)
    evaluator.reset()
    for image_id in BOXES:
        output = predictions(image_id, masks=False)
        corners = torch.tensor(BOXES[image_id], dtype=torch.float32)[:, None, :2].repeat(1, 17, 1) + 1.5
        output["instances"].pred_keypoints = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=2)
        evaluator.process([{"image_id": image_id}], [output])
    assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)
    evaluator = COCOEvaluator(dataset(), distributed=False, kpt_oks_sigmas=(0.05,) * 3)
    evaluator.reset()
    evaluator.process([{"image_id": image_id}], [output])
    with pytest.raises(AssertionError):
        evaluator.evaluate()


def test_numpy_and_torch_scores_agree(dataset):
    instances = predictions(1)["instances"]
    instances.scores = instances.scores.double()
    assert np.allclose([r["score"] for r in instances_to_coco_json(instances, 1)], [0.9, 0.5])
