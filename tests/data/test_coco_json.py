"""COCO files whose records lack keys, contradict each other or name what is not there (rows 3 to 5 and 15)."""

import time

import numpy as np
import pytest

from lowrank_d2.data.check import check_json
from lowrank_d2.data.coco_json import read_coco

from tests.data.damage import check, error_of, problem, square_rle


def test_a_clean_dataset_has_no_problem(own):
    data = check(own)
    assert list(data.report) == []
    assert data.classes == ["ant", "bee"]
    assert [record["image_id"] for record in data.records] == [1, 2, 3, 4]
    first = data.records[0]["annotations"][0]
    assert (
        first["bbox"] == [5, 8, 10, 10]
        and first["category_id"] == 1
        and first["segmentation"] == [[5, 8, 15, 8, 15, 18, 5, 18]]
    )


@pytest.mark.parametrize(
    "section, key",
    [
        ("images", "file_name"),
        ("images", "width"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("categories", "name"),
    ],
)
def test_a_missing_key(own, section, key):
    del own.content[section][1][key]
    report = check(own).report
    assert report["missing-key"].level == "error"
    assert report["missing-key"].examples == [f"{section}[1] has no {key!r}"]


def test_an_unknown_category(own):
    own.annotations[2]["category_id"] = 77
    assert "category_id 77" in error_of(own, "unknown-category")
    assert "annotations[2] (id 3)" in error_of(own, "unknown-category") and "[1, 2]" in error_of(
        own, "unknown-category"
    )


def test_annotations_of_unknown_images(own):
    own.annotations[:] = [{**own.annotations[0], "id": number} for number in range(1, 40)]
    own.annotations[5]["image_id"] = 999
    assert "image_id 999" in str(problem(own, "orphan"))
    for annotation in own.annotations[:8]:
        annotation["image_id"] = 999
    report = check(own).report
    assert report["too-many-orphans"].level == "error"
    assert "8 of 39, image_id 999" in str(report["too-many-orphans"])


def test_annotations_of_a_damaged_image_row_are_no_second_mistake(own):
    for row in own.content["images"]:
        del row["height"]
    assert "images[0] has no 'height'" in error_of(own, "missing-key")


def test_what_makes_a_whole_file_unusable_is_said_once(own):
    own.save()
    text = str(check_json(own.json, own.images / "nowhere").report["unreadable-dataset"])
    assert text.endswith("Name the folder that holds the images.") and "(1)" not in text


def test_duplicate_ids(own):
    own.annotations[1]["id"] = own.annotations[0]["id"]
    assert problem(own, "duplicate-annotation").level == "warning"
    own.annotations[1]["id"] = 2
    own.content["images"][1]["id"] = 1
    errors = check(own).report.of("error")
    assert [found.kind for found in errors] == ["duplicate-image"] and "id 1" in str(errors[0])


def test_ids_as_text_and_fractions(own):
    own.content["images"][1]["id"] = "2"
    own.annotations[1]["image_id"] = 2.0
    own.annotations[2]["category_id"] = "2"
    data = check(own)
    assert [found.kind for found in data.report] == ["id-type"] and len(data.records[1]["annotations"]) == 1
    own.content["images"][2]["id"] = "three"
    assert "'three'" in str(check(own).report["bad-id"])


def test_category_ids_with_gaps_and_a_root_row(own):
    own.content["categories"] = [
        {"id": 0, "name": "insects", "supercategory": "none"},
        {"id": 9, "name": "bee", "supercategory": "insects"},
        {"id": 4, "name": "ant", "supercategory": "insects"},
    ]
    for annotation in own.annotations:
        annotation["category_id"] = {1: 4, 2: 9}[annotation["category_id"]]
    data = check(own)
    assert data.classes == ["ant", "bee"] and data.category_ids == [4, 9]
    assert "insects" in str(data.report["root-category"]) and "2 classes, ids 4..9 -> 0..1" in str(
        data.report["category-ids"]
    )
    own.annotations[0]["category_id"] = 0
    assert check(own).classes == ["insects", "ant", "bee"]


def test_category_rows_that_contradict_each_other(own):
    own.content["categories"].append({"id": 2, "name": "wasp"})
    assert "'wasp'" in error_of(own, "duplicate-category")
    own.content["categories"][2] = {"id": 3, "name": "bee"}
    assert problem(own, "same-name").level == "warning"


def test_an_empty_class_name(own):
    own.content["categories"][1]["name"] = "  "
    assert "categories[1] (id 2): '  '" in error_of(own, "empty-name")


def test_two_records_of_one_file(own):
    own.content["images"][2]["file_name"] = "./1.png"
    own.content["images"][3]["file_name"] = "1.png"
    found = problem(own, "same-file")
    assert (found.level, found.count) == ("warning", 2)
    assert "images[2] (id 3): ./1.png is id 1 too" in str(found) and "images[3] (id 4): 1.png is id 1 too" in str(found)
    assert len(check(own).records) == 4


def test_annotation_id_zero_and_crowds_are_counted(own):
    own.annotations[0]["id"] = 0
    own.annotations[1]["iscrowd"] = 1
    own.annotations.pop()
    data = check(own)
    assert {found.kind: found.count for found in data.report} == {"annotation-id-0": 1, "crowd": 1, "empty-image": 1}


def test_val_categories_are_matched_by_name(own, tmp_path):
    own.content["categories"] = [{"id": 1, "name": "Bee"}, {"id": 2, "name": "ant"}]
    own.save()
    data = read_coco(own.json, own.images, classes=["ant", "bee"])
    assert data.report.of("error") == [] and data.records[0]["annotations"][0]["category_id"] == 0
    report = read_coco(own.json, own.images, classes=["ant", "wasp"]).report
    assert "missing: wasp" in str(report["class-names"]) and "not expected: Bee" in str(report["class-names"])


def names_of(own, *names):
    own.content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    own.save()


def test_names_that_differ_in_punctuation_alone_stay_apart(own):
    names_of(own, "C", "C+", "c++")
    data = read_coco(own.json, own.images, classes=["c++", "C+", "C"])
    assert data.report.of("error") == [] and data.category_ids == [3, 2, 1]


@pytest.mark.parametrize(
    "names, expected, words",
    [
        (["Bee", "BEE"], ["bee", "ant"], "missing: ant; not expected: none; too much alike: BEE"),
        (["bee"], ["bee", "bee"], "missing: none; not expected: none; too much alike: bee"),
        (["b-e-e"], ["Bee", "BEE"], "too much alike: b-e-e"),
    ],
)
def test_names_that_cannot_be_told_apart(own, names, expected, words):
    names_of(own, *names)
    assert words in str(read_coco(own.json, own.images, classes=expected).report["class-names"])


def test_thousands_of_records_take_seconds(own):
    images, annotations = own.content["images"], own.annotations
    own.content["images"] = [
        {**images[0], "id": number, "file_name": f"{number % 4 + 1}.png"} for number in range(3000)
    ]
    own.content["annotations"] = [{**annotations[0], "id": number, "image_id": number // 2} for number in range(6000)]
    own.save()
    start = time.perf_counter()
    data = check_json(own.json, own.images)
    assert time.perf_counter() - start < 15
    assert len(data.records) == 3000 and sum(len(record["annotations"]) for record in data.records) == 6000


JUNK = [
    None,
    True,
    -1,
    0,
    3.5,
    float("nan"),
    float("-inf"),
    1e300,
    10**30,
    "",
    "x",
    "1",
    [],
    [[]],
    [None],
    {},
    {"size": 3},
    [[1, 2], "a"],
]


def mutated(value, rng):
    """A copy of a json value with one node, chosen at random, replaced by junk or removed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(len(keys))]
        twin = value.copy()
        if rng.random() < 0.1:
            del twin[key]
        else:
            twin[key] = mutated(value[key], rng)
        return twin
    return JUNK[rng.integers(len(JUNK))]


@pytest.mark.parametrize("seed", range(8))
def test_no_damage_to_a_file_is_a_bug(own, seed):
    """Whatever stands in the file, the answer is a report."""
    rng = np.random.default_rng(seed)
    own.annotations[1]["segmentation"] = square_rle()[0]
    clean = own.content
    for _ in range(60):
        own.content = mutated(clean, rng)
        report = check(own).report
        assert all(found.what and found.count >= len(found.examples) for found in report)
        assert all(found.examples or found.kind == "unreadable-dataset" for found in report)


def test_boxes_alone_are_enough_for_models_without_masks(own):
    for row in own.content["annotations"]:
        del row["segmentation"]
    row = own.content["annotations"][0]
    image = next(image for image in own.content["images"] if image["id"] == row["image_id"])
    row["bbox"] = [image["width"] - 10, -5, 30, 20]  # beyond the upper right corner
    own.save()
    assert "boxes-only" in read_coco(own.json, own.images).report
    data = read_coco(own.json, own.images, masks=False)
    annotations = [annotation for record in data.records for annotation in record["annotations"]]
    assert not data.report.of("error") and not any("segmentation" in annotation for annotation in annotations)
    assert [image["width"] - 10, 0, 10, 15] in [annotation["bbox"] for annotation in annotations]


def test_an_object_without_mask_and_box_is_dropped_in_any_case(own):
    row = own.content["annotations"][0]
    del row["segmentation"], row["bbox"]
    own.save()
    report = read_coco(own.json, own.images, masks=False).report
    assert "without a mask and without a box" in str(report["no-mask"])
