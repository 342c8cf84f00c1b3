"""The split: sizes, every category everywhere, repeatable, and readable as datasets."""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lowrank_d2.errors import DataError
from yolos.coco_split import SIZES, fingerprint, part_of, split_images, write_split

PROJECT = Path(__file__).resolve().parents[1]
SMALL = {"test": 9, "val": 7, "train": 14}


def coco_file(images=5000, rare=8, categories=80):
    """Images of 2 or 3 objects, the higher the category the rarer; the last category is in `rare` images."""
    drawn = random.Random(1)
    annotations = []

    def annotate(image, category, **changes):
        values = {"bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25, "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]], **changes}
        annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, **values})

    ids = [10 * number + 7 for number in range(images)]
    for image in ids:
        for _ in range(drawn.randint(2, 3)):
            annotate(image, min(int(drawn.paretovariate(0.5)), categories - 1))
    for image in drawn.sample(ids, rare):
        annotate(image, categories)
    annotate(ids[0], categories, iscrowd=1)
    annotate(ids[1], categories, bbox=[1, 1, 0, 5])
    return {
        "images": [{"id": image, "file_name": f"{image}.jpg", "height": 10, "width": 12} for image in ids],
        "annotations": annotations,
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(categories)],
    }


@pytest.fixture(scope="module")
def content():
    return coco_file()


@pytest.mark.parametrize("seed", range(8))
def test_every_part_has_its_size_and_every_category(content, seed):
    parts = split_images(content, SIZES, seed)
    assert {name: len(ids) for name, ids in parts.items()} == {"test": 900, "val": 630, "train": 1470}
    assert len(set().union(*parts.values())) == 3000
    for ids in parts.values():
        real = [a for a in part_of(content, ids)["annotations"] if not a["iscrowd"] and a["bbox"][2] > 0]
        assert {a["category_id"] for a in real} == set(range(1, 81))


def test_the_seed_and_the_ids_decide(content):
    first = split_images(content, SIZES, 42)
    reordered = {**content, "images": content["images"][::-1], "annotations": content["annotations"][::-1]}
    assert split_images(reordered, SIZES, 42) == first
    assert split_images(content, SIZES, 43)["test"] != first["test"]
    assert first["train"] != sorted(first["train"])


def test_the_parts_are_not_only_rare_classes(content):
    # About half of the images of the most common class, as in the file.
    parts = split_images(content, SIZES, 0)
    share = {}
    for name, ids in {"all": [i["id"] for i in content["images"]], **parts}.items():
        having = {a["image_id"] for a in content["annotations"] if a["category_id"] == 1}
        share[name] = len(having & set(ids)) / len(ids)
    assert all(value == pytest.approx(share["all"], abs=0.06) for value in share.values())


def test_a_category_that_is_too_rare_is_named():
    with pytest.raises(DataError, match="'class 80' is in 2 images"):
        split_images(coco_file(rare=2), SIZES, 0)
    with pytest.raises(DataError, match="20 images, fewer than the 3000"):
        split_images(coco_file(images=20, rare=5), SIZES, 0)


def test_files_keep_categories_and_ids_and_say_what_they_are(tmp_path):
    content = coco_file(images=60, rare=12, categories=6)
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(content))
    written = write_split(source, tmp_path / "out", 3, SMALL)
    endings = ["_test.json", "_val.json", "_train.json", ".json"]
    assert [path.name for path in written] == [f"val3000{ending}" for ending in endings]
    manifest = json.loads(written[-1].read_text())
    by_id = {entry["id"]: entry for entry in content["annotations"]}
    for name, path in zip(SMALL, written):
        part = json.loads(path.read_text())
        assert part["categories"] == content["categories"] and len(part["images"]) == SMALL[name]
        assert all(by_id[entry["id"]] == entry for entry in part["annotations"])
        ids = [image["id"] for image in part["images"]]
        assert manifest["parts"][name] == {"images": SMALL[name], "ids_sha256": fingerprint(ids)}
    assert manifest["seed"] == 3 and manifest["source"] == "instances.json"


@pytest.mark.parametrize("text", [None, "", "[]", '{"images": [{}], "annotations": [], "categories": []}'])
def test_another_or_no_file_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read as COCO annotations"):
        write_split(tmp_path / "a.json", tmp_path, 0)


def test_the_script_writes_what_the_datasets_read(tmp_path, monkeypatch):
    annotations = tmp_path / "coco" / "annotations"
    annotations.mkdir(parents=True)
    (tmp_path / "coco" / "val2017").mkdir()
    content = coco_file()
    names = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    real_ids = sorted(names, key=names.get)
    for entry in content["annotations"]:
        entry["category_id"] = real_ids[entry["category_id"] - 1]
    content["categories"] = [
        {"id": real, "name": name} for real, name in zip(real_ids, MetadataCatalog.get("coco_2017_val").thing_classes)
    ]
    (annotations / "instances_val2017.json").write_text(json.dumps(content))
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    script = [sys.executable, str(PROJECT / "prepare_coco_split.py")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "900 test, 630 val, 1470 train"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = DatasetCatalog.get("coco_val3000_val")
    assert len(records) == 630
    assert {a["category_id"] for record in records for a in record["annotations"]} == set(range(80))
    assert records[0]["file_name"].startswith(str(tmp_path / "coco" / "val2017"))


def test_without_files_the_datasets_say_how_to_make_them(tmp_path, monkeypatch):
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="prepare_coco_split.py"):
        DatasetCatalog.get("coco_val3000_train")
