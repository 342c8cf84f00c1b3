"""Average precision block by block against pycocotools at once: every number the same, to the last bit."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lowrank_d2.evaluation.coco_ap import BlockwiseCOCOeval, match

SIDE = 128  # pixels; objects of up to 96 x 96 and more, so that all ranges of areas occur


def random_case(seed: int, images: int, most_found: int, categories: int = 3, step: float = 0.25) -> tuple[dict, list]:
    """Ground truth and results. Scores are multiples of `step`, so that many are equal; image ids are not ordered;
    detections lie near objects or anywhere; some images have no objects, no detections, or neither."""
    random = np.random.default_rng(seed)
    ids = random.permutation(images) * 3 + 1
    truth = {
        "images": [{"id": int(key), "height": SIDE, "width": SIDE} for key in ids],
        "categories": [{"id": 2 * number + 1, "name": str(number)} for number in range(categories)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        boxes = _boxes(random, random.integers(0, 6))
        for box in boxes:
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image["id"],
                "category_id": int(2 * random.integers(categories) + 1), "iscrowd": int(random.random() < 0.2),
                "bbox": box, "area": float(box[2] * box[3] * random.choice([1, 1, 0.7])), "segmentation": _mask(box),
            })
        for _ in range(random.integers(0, most_found + 1)):
            near = len(boxes) and random.random() < 0.7
            box = boxes[random.integers(len(boxes))] if near else _boxes(random, 1)[0]
            shifts = random.integers(-4, 5, 4) * (random.random() < 0.7)
            box = [max(float(value + shift), 1.0) for value, shift in zip(box, shifts)]
            results.append({
                "image_id": image["id"], "category_id": int(2 * random.integers(categories) + 1), "bbox": box,
                "score": float(np.round(random.random() / step) * step), "segmentation": _mask(box),
            })
    return truth, results


def _boxes(random: np.random.Generator, count: int) -> list[list[float]]:
    sides = random.choice([8, 20, 33, 60, 97, 110], (count, 2))
    boxes = np.concatenate([random.integers(1, 18, (count, 2)), sides], axis=1).astype(float)
    return boxes[random.integers(0, count, count)].tolist()  # some of them several times, for equal IoUs


def _mask(box: list[float]) -> dict:
    x, y, width, height = (int(value) for value in box)
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return coco_mask.encode(mask)


def at_once(truth: dict, results: list, task: str, limits=(1, 10, 100)) -> COCOeval:
    with contextlib.redirect_stdout(None):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(for_task(results, task)), task)
        judge.params.maxDets = list(limits)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def by_blocks(truth: dict, results: list, task: str, block: int, limits=(1, 10, 100)) -> BlockwiseCOCOeval:
    images = sorted(truth["images"], key=lambda image: image["id"])
    judge = BlockwiseCOCOeval(task, truth["categories"])
    judge.params.maxDets = list(limits)
    with contextlib.redirect_stdout(None):
        for start in range(0, len(images), block):
            part = images[start : start + block]
            keys = {image["id"] for image in part}
            annotations = [each for each in truth["annotations"] if each["image_id"] in keys]
            found = [each for each in results if each["image_id"] in keys]
            judge.add(part, copy.deepcopy(annotations), for_task(found, task))
        judge.accumulate()
        judge.summarize()
    return judge


def for_task(results: list, task: str) -> list:
    left_out = "bbox" if task == "segm" else None
    return [{name: value for name, value in result.items() if name != left_out} for result in results]


def assert_same(ours: BlockwiseCOCOeval, theirs: COCOeval) -> None:
    for name in ("precision", "recall", "scores"):
        assert np.array_equal(ours.eval[name], theirs.eval[name]), name
    assert np.array_equal(ours.stats, theirs.stats) and ours.eval["counts"] == theirs.eval["counts"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), images=st.integers(1, 9), most_found=st.sampled_from([1, 4, 30]),
    categories=st.integers(1, 3), step=st.sampled_from([0.5, 0.1, 1e-9]), block=st.integers(1, 5),
    task=st.sampled_from(["bbox", "segm"]), limits=st.sampled_from([(1, 10, 100), (2, 3, 5)]),
)
def test_every_number_is_that_of_pycocotools(seed, images, most_found, categories, step, block, task, limits):
    truth, results = random_case(seed, images, most_found, categories, step)
    if results:
        assert_same(by_blocks(truth, results, task, block, limits), at_once(truth, results, task, limits))


def test_more_than_100_detections_of_equal_scores():
    truth, results = random_case(seed=1, images=12, most_found=300, categories=1, step=0.5)
    assert max(np.unique([result["image_id"] for result in results], return_counts=True)[1]) > 200
    theirs = at_once(truth, results, "bbox")
    assert 0 < theirs.stats[0] < 1 and theirs.stats[6] < theirs.stats[8]
    assert_same(by_blocks(truth, results, "bbox", 5), theirs)


def test_images_without_objects_or_detections_count():
    truth, results = random_case(seed=2, images=6, most_found=8)
    keys = [image["id"] for image in truth["images"]]
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] not in keys[:2]]
    results = [each for each in results if each["image_id"] not in keys[1:3]]
    theirs = at_once(truth, results, "segm")
    assert 0 < theirs.stats[0] < 1
    assert_same(by_blocks(truth, results, "segm", 2), theirs)


def test_the_annotation_id_0_counts_as_no_match_as_in_pycocotools():
    truth, results = random_case(seed=3, images=3, most_found=10, categories=1)
    truth["annotations"][0]["iscrowd"] = 0
    results.append({**truth["annotations"][0], "score": 1.0})
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
    theirs = at_once(truth, results, "bbox")
    assert_same(by_blocks(truth, results, "bbox", 2), theirs)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    assert at_once(truth, results, "bbox").stats[8] > theirs.stats[8]


def test_keypoints():
    random = np.random.default_rng(4)
    truth, results = random_case(seed=4, images=8, most_found=6, categories=1)
    for each in [*truth["annotations"], *results]:
        x, y, width, height = each["bbox"]
        places = [x + width * random.random(17), y + height * random.random(17)]
        points = np.stack([*places, random.integers(0, 3, 17)], axis=1)
        each["keypoints"], each["num_keypoints"] = points.ravel().tolist(), int((points[:, 2] > 0).sum())
    truth["annotations"][0] |= {"keypoints": [0.0] * 51, "num_keypoints": 0}
    for result in results[::2]:  # some that fit
        same = [each for each in truth["annotations"] if each["image_id"] == result["image_id"]]
        result["keypoints"] = same[0]["keypoints"] if same else result["keypoints"]
    results = [{name: each[name] for name in ("image_id", "category_id", "keypoints", "score")} for each in results]
    theirs = at_once(truth, results, "keypoints", limits=[20])
    assert len(theirs.stats) == 10 and 0 < theirs.stats[0] < 1
    assert_same(by_blocks(truth, results, "keypoints", 3, limits=[20]), theirs)


def test_matching_prefers_objects_that_count_then_overlap_then_the_last():
    ious = np.array([[0.6, 0.9, 0.6], [0.6, 0.9, 0.6], [0.6, 0.9, 0.6], [0.6, 0.9, 0.6], [0.4, 0.4, 0.4]])
    ignored = np.array([[False, False, False], [False, True, False]])
    partner = match(ious, ignored, np.array([False, True, False]), np.array([0.5, 0.7]))
    assert partner[0].tolist() == [[1, 1, 1, 1, -1], [1, 1, 1, 1, -1]]  # a crowd, but counted: any number takes it
    assert partner[1].tolist() == [[2, 0, 1, 1, -1], [1, 1, 1, 1, -1]]


def test_a_detection_leaves_22_bytes():
    truth, results = random_case(seed=5, images=1, most_found=40, categories=1)
    results = (results * 60)[:100]

    def size(images: int) -> int:
        judge = BlockwiseCOCOeval("bbox", truth["categories"])
        with contextlib.redirect_stdout(None):
            for key in range(images):
                objects = [{**each, "image_id": key} for each in truth["annotations"]]
                judge.add([{**truth["images"][0], "id": key}], objects, [{**each, "image_id": key} for each in results])
        return len(pickle.dumps(judge))  # all that it holds

    assert size(400) - size(20) == pytest.approx(22 * 100 * 380, rel=1e-3)


@pytest.mark.parametrize("results", [[], [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "score": 1.0}]])
def test_nothing_found_of_a_category_is_0_and_nothing_to_find_is_minus_1(results):
    truth = {
        "images": [{"id": 1, "height": SIDE, "width": SIDE}], "categories": [{"id": 5}, {"id": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    }
    judge = by_blocks(truth, results, "bbox", 1)
    assert (judge.eval["precision"][:, :, 0, :2] == 0).all() and (judge.eval["precision"][:, :, 1] == -1).all()
