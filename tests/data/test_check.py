"""Every kind of damage to a user's dataset: found before training, with the value, in the right class, or repaired and
counted."""

import json
import os
import time
import unicodedata

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image
from pycocotools import mask as coco_mask

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.data.annotation_file import load_json
from lowrank_d2.data.check import (
    check_config,
    check_dataset,
    check_images,
    check_json,
    check_num_classes,
    check_together,
)
from lowrank_d2.data.coco_json import read_coco
from lowrank_d2.data.datasets import register_json, register_own
from lowrank_d2.data.problems import Report
from lowrank_d2.data.segmentations import _runs
from lowrank_d2.errors import ConfigError, DataError


def check(own, **options):
    own.save()
    return check_json(own.json, own.images, **options)


def problem(own, kind, **options):
    """The problem of `kind`, which must be the only error or warning."""
    report = check(own, **options).report
    assert [found.kind for found in report if found.level != "info"] == [kind], report.table()
    return report[kind]


def error_of(own, kind, **options):
    found = problem(own, kind, **options)
    assert found.level == "error" and found.fix
    return str(found)


def dropped(own, kind):
    """The dataset stays usable with one object less."""
    data = check(own)
    assert data.report[kind].level == "warning" and data.report[kind].count == 1
    assert sum(len(record["annotations"]) for record in data.records) == 3
    return str(data.report[kind])


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


# Rows 1 and 2: the file itself


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"images": [\n 1,, 2]}', [":2:4", "Expecting value"]),
        (b'{"images": [{"id": 1}', ["incomplete download"]),
        (b'{"images": [{"id": "unterminated', ["incomplete download"]),
        ('{"images": []}'.encode("utf-16"), ["UTF-16"]),
        (b'{"name": "\xff"}', ["UTF-8", "0xff"]),
        (b"", ["empty (0 bytes)", "incomplete download"]),
        (b" <HTML><p>404", ["a web page"]),
    ],
)
def test_a_file_that_is_no_json(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_json(path)
    assert all(word in str(error.value) for word in words) and str(path) in str(error.value)


def test_a_byte_order_mark_is_accepted(own):
    own.save()
    own.json.write_bytes(b"\xef\xbb\xbf" + own.json.read_bytes())
    assert len(read_coco(own.json, own.images).records) == 4


@pytest.mark.parametrize(
    "content, words",
    [
        ([{"image_id": 1, "score": 0.5}], "a list"),
        ({"0.jpg123": {"filename": "0.jpg", "size": 123, "regions": []}}, "looks like VIA"),
        ({"shapes": [], "imagePath": "a.jpg", "version": "5"}, "looks like labelme"),
        ({"path": "x", "train": "y", "names": ["a"], "nc": 1}, "looks like YOLO"),
        ({"images": [], "annotations": []}, "'categories'"),
        ({"images": [], "annotations": [], "categories": []}, "nothing to train on"),
    ],
)
def test_another_format(own, content, words):
    own.content = content
    own.save()
    with pytest.raises(DataError, match=words):
        read_coco(own.json, own.images)


def test_a_missing_file_and_a_missing_folder(own, tmp_path):
    with pytest.raises(DataError, match="absent.json"):
        read_coco(tmp_path / "absent.json", own.images)
    own.save()
    with pytest.raises(DataError, match="No such file"):
        read_coco(own.json, tmp_path / "nowhere")


# Rows 3 to 5: keys and references


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
    assert report["too-many-orphans"].level == "error" and "8 of 39" in str(report["too-many-orphans"])


def test_annotations_of_a_damaged_image_row_are_no_second_mistake(own):
    for row in own.content["images"]:
        del row["height"]
    assert "images[0] has no 'height'" in error_of(own, "missing-key")


def test_what_makes_a_whole_file_unusable_is_said_once(own):
    own.save()
    text = str(check_json(own.json, own.images / "nowhere").report["unreadable-dataset"])
    assert text.endswith("Name the folder that holds the images.") and "(1)" not in text


# Rows 6 to 8, 44, 45: image files


def test_a_missing_image_names_what_is_near(own):
    os.rename(own.images / "2.png", own.images / "2.PNG")
    text = error_of(own, "missing-image")
    assert "2.png" in text and "2.PNG" in text and str(own.images) in text and "--skip-missing" in text
    data = check(own, skip_missing=True)
    assert len(data.records) == 3 and data.report["missing-image"].level == "warning"


def test_a_missing_image_that_lies_deeper_is_named_with_its_folder(own):
    (own.images / "sub" / "deep").mkdir(parents=True)
    (own.images / "2.png").rename(own.images / "sub" / "deep" / "2.png")
    assert "images[1]: 2.png (there is sub/deep/2.png)" in error_of(own, "missing-image")


@pytest.mark.parametrize("written, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_composed_or_decomposed(own, written, stored):
    (own.images / "2.png").rename(own.images / unicodedata.normalize(stored, "größe.png"))
    own.content["images"][1]["file_name"] = unicodedata.normalize(written, "größe.png")
    data = check(own)
    assert [found.kind for found in data.report] == ["file-name"] and len(data.records) == 4


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image(own, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(own.images / f"cut.{suffix}")
    whole = (own.images / f"cut.{suffix}").read_bytes()
    own.content["images"][0]["file_name"] = f"cut.{suffix}"
    assert list(check(own).report) == []
    (own.images / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert f"cut.{suffix}" in error_of(own, "unreadable-image")


def test_damage_in_the_middle_is_found_by_decoding(own):
    path = own.images / "2.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    assert list(check(own).report) == []
    assert "2.png" in error_of(own, "unreadable-image", decode=True)


@pytest.mark.parametrize(
    "content, word", [(b"", "0 bytes"), (b"<!DOCTYPE html><html>", "HTML"), (b"hello", "no image format")]
)
def test_files_that_are_no_images(own, content, word):
    (own.images / "2.png").write_bytes(content)
    assert word in error_of(own, "unreadable-image")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_paths_that_are_no_files_do_not_block(own, make):
    (own.images / "2.png").unlink()
    make(own.images / "2.png")
    assert "not a regular file" in error_of(own, "not-a-file-image")


def test_an_image_bomb_is_refused_from_its_header(own):
    assert "48 x 32" in error_of(own, "too-large-image", max_pixels=1000)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a\0b.png", "images/../../secret.png", ""])
def test_file_names_that_leave_the_folder(own, name):
    Image.new("RGB", (48, 32)).save(own.images.parent / "secret.png")
    own.content["images"][1]["file_name"] = name
    own.annotations.pop(1)
    found = check(own).report["outside-folder"]
    assert found.level == "error" and (name.replace("\0", "\\x00") in str(found))


def test_a_symbolic_link_out_of_the_folder(own):
    secret = own.images.parent / "secret.png"
    Image.new("RGB", (48, 32)).save(secret)
    (own.images / "2.png").unlink()
    (own.images / "2.png").symlink_to(secret)
    assert str(secret) in error_of(own, "outside-folder")


@pytest.mark.parametrize("name", ["images/2.png", "images\\2.png", "0a1b2c3d-2.png", "upload/0a1b2c3d-2.png"])
def test_names_as_other_tools_write_them(own, name):
    own.content["images"][1]["file_name"] = name
    data = check(own)
    assert [found.kind for found in data.report] == ["file-name"]
    assert os.path.samefile(data.records[1]["file_name"], own.images / "2.png")


def test_encoded_and_absolute_names_are_found(own):
    os.rename(own.images / "2.png", own.images / "zwei äöü.png")
    own.content["images"][0]["file_name"] = "./1.png"
    own.content["images"][1]["file_name"] = "zwei%20%C3%A4%C3%B6%C3%BC.png"
    own.content["images"][2]["file_name"] = str(own.images / "3.png")
    data = check(own)
    assert data.records[1]["file_name"].endswith("zwei äöü.png") and not data.report.of("error")


def test_two_names_of_one_file(own):
    own.content["images"][1]["file_name"] = "a/1.png"
    own.content["images"][2]["file_name"] = "b/1.png"
    assert "a/1.png" in error_of(own, "ambiguous-file") and "b/1.png" in error_of(own, "ambiguous-file")


# Rows 9 to 14: geometry


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


def square_rle(height=32, width=48):
    mask = np.zeros((height, width), np.uint8)
    mask[8:18, 10:20] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": encoded["counts"].decode()}, mask


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


# Rows 15 to 19: ids, sizes, what is left


def test_duplicate_ids(own):
    own.annotations[1]["id"] = own.annotations[0]["id"]
    assert problem(own, "duplicate-annotation").level == "warning"
    own.annotations[1]["id"] = 2
    own.content["images"][1]["id"] = 1
    assert "id 1" in str(check(own).report["duplicate-image"]) and check(own).report["duplicate-image"].level == "error"


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


def test_annotation_id_zero_and_crowds_are_counted(own):
    own.annotations[0]["id"] = 0
    own.annotations[1]["iscrowd"] = 1
    own.annotations.pop()
    data = check(own)
    assert {found.kind: found.count for found in data.report} == {"annotation-id-0": 1, "crowd": 1, "empty-image": 1}


def test_a_size_that_differs(own):
    own.content["images"][1].update(height=30, width=40)
    assert "record 40 x 30, file 48 x 32" in error_of(own, "size-mismatch")


def test_exif_rotation(own):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 32)).save(own.images / "turned.jpg", exif=exif)
    own.content["images"][1]["file_name"] = "turned.jpg"
    assert "--exif ignore" in error_of(own, "exif-size")
    assert list(check(own, exif="ignore").report) == []
    own.content["images"][1].update(height=48, width=32)
    assert list(check(own).report) == []
    assert "--exif apply" in error_of(own, "exif-size", exif="ignore")


@pytest.mark.parametrize(
    "mode, kind, level",
    [
        ("L", "image-mode", "info"),
        ("P", "image-mode", "info"),
        ("1", "image-mode", "info"),
        ("RGBA", "image-mode", "info"),
        ("I;16", "deep-image", "warning"),
    ],
)
def test_unusual_modes(own, mode, kind, level):
    Image.new(mode, (48, 32)).save(own.images / "2.png")
    report = check(own).report
    assert [(found.kind, found.level) for found in report] == [(kind, level)]


def test_nothing_to_train_on(own):
    for annotation in own.annotations:
        annotation["iscrowd"] = 1
    report = check_together([check(own)], [])
    assert "4 images, 0 usable" in str(report["nothing-to-train-on"])
    own.annotations.clear()
    data = check(own)
    assert "nothing to train on" in str(check_together([data], [])["nothing-to-train-on"])
    assert check_together([], [data])["val-empty"].level == "error"


def test_shared_images_and_classes_only_in_val(own):
    train, val = check(own), check(own)
    for record in train.records:
        record["annotations"] = [a for a in record["annotations"] if a["category_id"] == 0]
    report = check_together([train], [val])
    assert report["shared-image"].count == 4 and report["shared-image"].level == "warning"
    assert "bee: 0 in train, 2 in val" in str(report["class-only-in-val"])


def test_val_categories_are_matched_by_name(own, tmp_path):
    own.content["categories"] = [{"id": 1, "name": "Bee"}, {"id": 2, "name": "ant"}]
    own.save()
    data = read_coco(own.json, own.images, classes=["ant", "bee"])
    assert data.report.of("error") == [] and data.records[0]["annotations"][0]["category_id"] == 0
    report = read_coco(own.json, own.images, classes=["ant", "wasp"]).report
    assert "missing: wasp" in str(report["class-names"]) and "not expected: Bee" in str(report["class-names"])


def test_number_of_classes_against_the_data():
    check_num_classes(2, ["ant", "bee"])
    with pytest.raises(ConfigError, match="is 80, but .* 2 classes"):
        check_num_classes(80, ["ant", "bee"])


# Rows 20 and 22, and the whole run


def test_a_config_is_checked_with_all_its_datasets(own, tmp_path):
    own.content["images"][1].update(height=30, width=40)
    own.annotations[2]["category_id"] = 77
    own.save()
    register_json("test_check_own", own.json, own.images)
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.DATASETS.TRAIN = ("test_check_own",)
    with pytest.raises(DataError) as error:
        check_config(cfg)
    assert "category_id 77" in str(error.value) and "file 48 x 32" in str(error.value) and error.value.exit_code == 2
    cfg.DATASETS.TRAIN = ("test_chekc_own",)
    with pytest.raises(ConfigError, match="test_check_own"):
        check_config(cfg)


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


def test_the_report_shows_three_examples_and_the_count(own):
    for annotation in own.annotations:
        annotation["category_id"] = 9
    own.save()
    data = read_coco(own.json, own.images)
    with pytest.raises(DataError, match=r"\(4\): .*; and 1 more"):
        data.report.raise_errors()
    rows = json.loads(data.report.as_json())["problems"]
    assert rows[0]["count"] == 4 and len(rows[0]["examples"]) == 3 and rows[0]["level"] == "error"
    assert "unknown" not in data.report.table() and "category_id 9" in data.report.table()


def test_reports_add_up():
    first, second = Report("a"), Report("b")
    for number in range(5):
        second.add("warning", "odd", f"place {number}", "what", "fix")
    first.extend(second)
    first.extend(second)
    assert first["odd"].count == 10 and len(first["odd"].examples) == 3


def test_a_validation_tenth_is_held_out_repeatably(own):
    names = register_own(own.save().json, own.images, seed=1)
    train, val = check_dataset(names.train), check_dataset(names.val)
    assert names.classes == ["ant", "bee"] and len(train.records) == 3 and len(val.records) == 1
    assert train.report["few-images"].level == "warning"
    again = register_own(own.json, own.images, seed=1)
    assert [r["image_id"] for r in check_dataset(again.val).records] == [r["image_id"] for r in val.records]
    own.content["images"] = own.content["images"][:1]
    own.annotations[:] = own.annotations[:1]
    with pytest.raises(DataError, match="--val-json"):
        register_own(own.save().json, own.images)


def test_missing_files_are_found_when_images_alone_are_checked(own):
    data = read_coco(own.save().json, own.images)
    (own.images / "3.png").unlink()
    report = Report("later")
    check_images(data.records, report)
    assert report["missing-image"].count == 1 and "3.png" in str(report["missing-image"])
