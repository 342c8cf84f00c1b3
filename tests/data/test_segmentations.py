"""Boxes, polygons and run lengths that cannot be used, or can be mended (rows 9 to 14)."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lowrank_d2.data.segmentations import _runs

from tests.data.damage import check, dropped, error_of, problem, square_rle


def test_a_box_without_area_is_dropped(own):
    own.annotations[1]["bbox"] = [5, 5, 0, 7]
    assert "annotations[1] (id 2)" in dropped(own, "empty")


@pytest.mark.parametrize("bbox", [[5, 5, -3, 7], [5, 5, 3], None, ["5", "5", "3", "7"], "box", [1, 2, 3, [4]]])
def test_boxes_that_are_none(own, bbox):
    own.annotations[1]["bbox"] = bbox
    assert str(bbox)[:20].strip("[]'") in error_of(own, "bad-box")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coordinates_that_are_not_finite(own, value):
    own.annotations[1]["segmentation"][0][3] = value
    assert str(value) in error_of(own, "not-finite")
    own.annotations[1]["segmentation"][0][3] = 8
    own.annotations[1]["bbox"][0] = value
    assert str(value) in error_of(own, "not-finite")


def test_points_outside_are_clipped_and_objects_outside_dropped(own):
    own.annotations[1]["segmentation"] = [[-10, -10, 20, -10, 20, 20, -10, 20]]
    own.annotations[1]["bbox"] = [0, 0, 20, 20]
    data = check(own)
    assert data.report["clipped"].count == 1
    assert data.records[1]["annotations"][0]["bbox"] == [0, 0, 20, 20]
    own.annotations[1]["segmentation"] = [[100, 100, 120, 100, 120, 120]]
    assert "outside" in dropped(own, "outside")


def test_a_vertex_at_the_end_of_the_world_costs_nothing(own):
    own.annotations[1]["segmentation"] = [[10, 8, 1e15, 8, 1e15, 18, 10, 18]]
    assert check(own).report["clipped"].count == 1
    own.content["images"][1]["width"] = 10**30
    assert str(10**30) in str(check(own).report["bad-size"])


def test_polygons_with_too_few_points(own):
    own.annotations[1]["segmentation"].append([1, 2, 3, 4])
    data = check(own)
    assert data.report["part-dropped"].count == 1 and len(data.records[1]["annotations"][0]["segmentation"]) == 1
    own.annotations[1]["segmentation"] = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
    dropped(own, "too-few-points")


def test_a_polygon_that_covers_no_pixel(own):
    own.annotations[1]["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    dropped(own, "empty")


@pytest.mark.parametrize(
    "segmentation", ["text", 7, [["1", "2", "3", "4", "5", "6"]], [[1, 2, None, 4, 5, 6]], [1, 2, 3, 4, 5, 6]]
)
def test_segmentations_that_are_none(own, segmentation):
    own.annotations[1]["segmentation"] = segmentation
    error_of(own, "bad-segmentation")


def test_run_lengths_of_both_forms(own):
    compressed, mask = square_rle()
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    own.annotations[1]["segmentation"] = compressed
    own.annotations[2].update(segmentation={"size": [32, 48], "counts": counts}, bbox=[10, 8, 10, 10])
    data = check(own)
    assert list(data.report) == []
    for record in data.records[1:3]:
        assert (coco_mask.decode(record["annotations"][0]["segmentation"]) == mask).all()


def test_damaged_run_lengths(own):
    compressed, _ = square_rle()
    own.annotations[1]["segmentation"] = {**compressed, "counts": compressed["counts"][:-3]}
    assert "annotations[1] (id 2)" in error_of(own, "rle-damaged")
    own.annotations[1]["segmentation"] = {"size": [32, 48], "counts": [10, 20, 30]}
    assert "60 pixels" in error_of(own, "rle-damaged")
    own.annotations[1]["segmentation"] = {"size": [32, 48], "counts": "~~~~"}
    error_of(own, "rle-damaged")
    own.annotations[1]["segmentation"] = {"size": [48, 32], "counts": square_rle(48, 32)[0]["counts"]}
    assert "[48, 32]" in error_of(own, "rle-size") and "EXIF" in error_of(own, "rle-size")
    own.annotations[1]["segmentation"] = {"size": [64, 64], "counts": "04"}
    assert "[64, 64]" in error_of(own, "rle-size") and "[32, 48]" in error_of(own, "rle-size")
    own.annotations[1]["segmentation"] = {"size": [32, 48], "counts": [32 * 48]}
    dropped(own, "empty")


def test_the_text_form_of_run_lengths_is_read_as_pycocotools_does(own):
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (32, 48), (300, 500)):
        for density in (0.0, 0.01, 0.5, 1.0):
            mask = (rng.random((height, width)) < density).astype(np.uint8)
            encoded = coco_mask.encode(np.asfortranarray(mask))
            runs = _runs(encoded["counts"])
            assert runs.sum() == mask.size and runs[1::2].sum() == mask.sum()
            assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.T.reshape(-1))


def test_holes_are_noticed(own):
    own.annotations[1]["segmentation"].append([12, 10, 18, 10, 18, 16, 12, 16])
    assert problem(own, "hole").level == "warning"


def test_boxes_are_mended_by_their_masks(own):
    own.annotations[0]["bbox"] = [0, 0, 40, 20]
    del own.annotations[1]["bbox"]
    del own.annotations[2]["area"], own.annotations[3]["iscrowd"]
    data = check(own)
    assert data.records[0]["annotations"][0]["bbox"] == [5, 8, 10, 10]
    assert data.records[1]["annotations"][0]["bbox"] == [10, 8, 10, 10]
    assert {found.kind: found.count for found in data.report} == {"box-off": 1, "no-box": 1, "no-area": 2}


def test_corner_boxes_are_suspected(own):
    for annotation in own.annotations:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + 20, y + 9, x + 20 + w, y + 9 + h]
    assert check(own).report["xyxy"].level == "warning"


def test_boxes_only(own):
    del own.annotations[0]["segmentation"]
    dropped(own, "no-mask")
    for annotation in own.annotations:
        annotation["segmentation"] = []
    assert "this model needs masks" in str(check(own).report["boxes-only"])
