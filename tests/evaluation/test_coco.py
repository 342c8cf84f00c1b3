"""The evaluator with predictions on disk against Detectron2's own: same results, same file, no memory by the image."""

import gc
import json
import logging
import math
import os
import tracemalloc

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from lowrank_d2.errors import ConfigError, DataError
from lowrank_d2.evaluation import coco
from lowrank_d2.evaluation.coco import StreamedCOCOEvaluator

NAME, HEIGHT, WIDTH = "streamed", 40, 60


@pytest.fixture
def dataset(tmp_path):
    """Returns a function that registers a dataset of so many images; half of the annotations are polygons."""

    def register(images: int, seed: int = 0, annotated: bool = True) -> str:
        random = np.random.default_rng(seed)
        content = {
            "info": {}, "categories": [{"id": 20, "name": "b"}, {"id": 10, "name": "a"}], "annotations": [],
            "images": [{"id": int(key), "height": HEIGHT, "width": WIDTH, "file_name": f"{key}.png"}
                       for key in random.permutation(images) + 1],
        }
        for image in content["images"]:
            for x0, y0, x1, y1 in _boxes(random, random.integers(0, 4)).tolist():
                content["annotations"].append({
                    "id": len(content["annotations"]) + 1, "image_id": image["id"],
                    "category_id": int(random.choice([10, 20])), "iscrowd": 0,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                })
                if random.random() < 0.3:
                    whole = {"counts": [0, HEIGHT * WIDTH], "size": [HEIGHT, WIDTH]}
                    content["annotations"][-1] |= {"iscrowd": 1, "segmentation": whole}
        if not annotated:
            del content["annotations"]
        (tmp_path / "truth.json").write_text(json.dumps(content))
        forget()
        register_coco_instances(NAME, {}, str(tmp_path / "truth.json"), "")
        DatasetCatalog.get(NAME)
        return NAME

    def forget():
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(NAME, None)

    yield register
    forget()


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) float, whole numbers, x0 y0 x1 y1."""
    corners = random.integers(0, (WIDTH - 20, HEIGHT - 20), (count, 2))
    return np.concatenate([corners, corners + random.integers(6, 20, (count, 2))], axis=1).astype(float)


def outputs(images: int, seed: int = 0, most: int = 12, masks: bool = True):
    """Yields (inputs, outputs) of each image: detections near what `dataset` of the same seed has, or anywhere."""
    random = np.random.default_rng(seed + 1000)
    truth = json.loads(open(MetadataCatalog.get(NAME).json_file).read()).get("annotations", [])
    for key in range(1, images + 1):
        own = [each for each in truth if each["image_id"] == key]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in own)]
        boxes = np.array([*boxes, *_boxes(random, random.integers(0, most))]).reshape(-1, 4)
        boxes[:, 2:] -= random.integers(0, 4, (len(boxes), 2))
        classes = [{10: 0, 20: 1}[each["category_id"]] for each in own]
        scores = np.append(random.integers(5, 12, len(own)), random.integers(0, 8, len(boxes) - len(own)))
        found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
        found.scores = torch.from_numpy(scores / 11).float()
        found.pred_classes = torch.tensor([*classes, *random.integers(0, 2, len(boxes) - len(own))], dtype=torch.int64)
        if masks:
            found.pred_masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes.astype(int)):
                mask[y0:y1, x0:x1] = True
        yield [{"image_id": key}], [{"instances": found}]


def run(evaluator, pairs, **options):
    evaluator.reset()
    for pair in pairs:
        evaluator.process(*pair)
    return evaluator.evaluate(**options)


@pytest.mark.parametrize("masks", [True, False])
def test_results_and_file_are_detectron2s(dataset, tmp_path, masks):
    name = dataset(70)
    theirs = run(COCOEvaluator(name, output_dir=str(tmp_path / "theirs")), outputs(70, masks=masks))
    ours = run(StreamedCOCOEvaluator(name, str(tmp_path / "ours")), outputs(70, masks=masks))
    assert list(ours) == list(theirs) == (["bbox", "segm"] if masks else ["bbox"])
    for task, metrics in theirs.items():
        assert list(ours[task]) == list(metrics) and 10 < metrics["AP"] < 90
        assert ours[task] == pytest.approx(metrics, rel=1e-12, nan_ok=True)
    file = "coco_instances_results.json"
    assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert os.listdir(tmp_path / "ours") == [file]


def test_only_some_images(dataset):
    name = dataset(40)
    chosen = [3, 39, 7, 8]
    theirs = run(COCOEvaluator(name), outputs(40), img_ids=chosen)
    evaluator = StreamedCOCOEvaluator(name)
    ours = run(evaluator, outputs(40), img_ids=chosen)
    assert ours["segm"] == pytest.approx(theirs["segm"], rel=1e-12, nan_ok=True)
    assert evaluator.evaluate()["segm"]["AP"] != ours["segm"]["AP"]  # once more, over all


def test_an_image_in_two_parts(dataset):
    name = dataset(5)
    pairs = [*outputs(5), *outputs(5, seed=9)]
    theirs, ours = run(COCOEvaluator(name), pairs), run(StreamedCOCOEvaluator(name), pairs)
    assert ours["bbox"] == pytest.approx(theirs["bbox"], rel=1e-12, nan_ok=True)


def test_memory_does_not_grow_with_the_images(dataset, monkeypatch):
    monkeypatch.setattr(coco, "_BLOCK", 2)  # a block's size depends on what is in its images
    found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.tensor([[5.0, 5.0, 19.0, 19.0]] * 10)))
    found.scores, found.pred_classes = torch.arange(10) / 10, torch.arange(10) % 2
    found.pred_masks = torch.zeros(10, HEIGHT, WIDTH, dtype=torch.bool)
    found.pred_masks[:, ::2, ::2] = True

    def growth(images: int) -> np.ndarray:
        """Bytes that are held before `evaluate`, and at most ever, above those after the first image."""
        evaluator = StreamedCOCOEvaluator(dataset(images))
        evaluator.reset()
        for key in range(1, images + 1):
            if key == 2:
                tracemalloc.start()
            evaluator.process([{"image_id": key}], [{"instances": found}])
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        evaluator.evaluate()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return np.array([held, most])

    held, most = (growth(60) - growth(20)) / 40
    assert held < 200  # an image's number, and its place in a list, 45 to 65; Detectron2's evaluator: 20,000
    assert most < 1500  # the places of its results, and 22 bytes a detection and task; Detectron2's: 48,000


def test_nothing_processed_and_nothing_found(dataset, caplog):
    name = dataset(3)
    with caplog.at_level(logging.WARNING, logger="lowrank_d2"):
        assert run(StreamedCOCOEvaluator(name), []) == {}
    assert "No image of streamed was predicted" in caplog.text
    pairs = [(inputs, [{"instances": found[0]["instances"][:0]}]) for inputs, found in outputs(3)]
    ours, theirs = run(StreamedCOCOEvaluator(name), pairs), run(COCOEvaluator(name), pairs)
    assert list(ours) == list(theirs) == ["bbox"] and list(ours["bbox"]) == list(theirs["bbox"])
    assert all(math.isnan(value) for value in ours["bbox"].values())


def test_without_annotations_the_predictions_are_written_and_not_judged(dataset, tmp_path):
    name = dataset(3, annotated=False)
    assert run(StreamedCOCOEvaluator(name, str(tmp_path / "out")), outputs(3)) == {}
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {each["image_id"] for each in written} == {1, 2, 3}


def test_classes_and_images_that_the_dataset_does_not_have(dataset):
    name = dataset(3)
    inputs, found = next(outputs(3))
    with pytest.raises(DataError, match="Image 77 was predicted.* of streamed does not have it, nor 1 more"):
        run(StreamedCOCOEvaluator(name), [([{"image_id": 77}], found), ([{"image_id": 78}], found)])
    found[0]["instances"].pred_classes[:] = 2
    with pytest.raises(ConfigError, match="class number 2, but streamed has 2 classes"):
        run(StreamedCOCOEvaluator(name), [(inputs, found)])


def test_proposals_are_left_to_detectron2(dataset, monkeypatch):
    monkeypatch.setattr(COCOEvaluator, "evaluate", lambda self, img_ids=None: {"box_proposals": len(self._predictions)})
    proposals = Instances((HEIGHT, WIDTH), proposal_boxes=Boxes(torch.ones(2, 4)), objectness_logits=torch.ones(2))
    pairs = [([{"image_id": key}], [{"proposals": proposals}]) for key in (1, 2)]
    assert run(StreamedCOCOEvaluator(dataset(2)), pairs) == {"box_proposals": 2}
