"""Whole datasets: image sizes, what is left to train on, train and validation data together (rows 16 to 22)."""

import pytest
from detectron2.config import get_cfg
from PIL import Image

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.data.check import check_config, check_dataset, check_images, check_num_classes, check_together
from lowrank_d2.data.coco_json import read_coco
from lowrank_d2.data.datasets import register_json, register_own
from lowrank_d2.data.problems import Report
from lowrank_d2.errors import ConfigError, DataError

from tests.data.damage import check, error_of


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
    assert "4 images, 0 usable (4 crowds)" in str(report["nothing-to-train-on"])
    for annotation in own.annotations:
        annotation["segmentation"] = [[1, 2, 3, 4]]
    told = str(check_together([check(own)], [])["nothing-to-train-on"])
    assert "0 usable (0 crowds; annotations without a polygon of three points are dropped: 4)" in told
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


def test_number_of_classes_against_the_data():
    check_num_classes(2, ["ant", "bee"])
    with pytest.raises(ConfigError, match="is 80, but .* 2 classes"):
        check_num_classes(80, ["ant", "bee"])


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
