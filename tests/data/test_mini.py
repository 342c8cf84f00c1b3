"""The generated trees: exact layouts, repeatable content, nobody's files touched, and domains that differ as they
should."""

import json

import numpy as np
import pytest
from PIL import Image

from lowrank_d2.data import mini
from lowrank_d2.data.mini import primitives
from lowrank_d2.data.mini.cityscapes import LABELS, rasterised
from lowrank_d2.errors import ConfigError, OutputError


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("name", list(mini.DOMAINS))
def test_the_same_arguments_give_the_same_tree_and_no_new_work(tmp_path, name):
    first = mini.build(tmp_path / "a", name, train=3, val=1, seed=4)
    second = mini.build(tmp_path / "b", name, train=3, val=1, seed=4)
    assert digest(first) == digest(second)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    mini.build(tmp_path / "a", name, train=3, val=1, seed=4)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    other = mini.build(tmp_path / "b", name, train=3, val=1, seed=5)
    assert digest(other) != digest(first) and [p.name for p in (tmp_path / "b").iterdir()] == [name]


def test_pictures_do_not_depend_on_how_many_there_are(tmp_path):
    few = mini.build(tmp_path / "a", "source", train=2, val=1)
    many = mini.build(tmp_path / "b", "source", train=5, val=2)
    assert (few / "train/000001.jpg").read_bytes() == (many / "train/000001.jpg").read_bytes()


def test_a_damaged_tree_is_made_anew_and_strange_files_are_kept(tmp_path):
    folder = mini.build(tmp_path, "source", train=2, val=1)
    (folder / "train/000000.jpg").unlink()
    mini.build(tmp_path, "source", train=2, val=1)
    assert (folder / "train/000000.jpg").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="notes.txt"):
        mini.build(tmp_path, "source", train=3, val=1)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "wixray").mkdir()
    with pytest.raises(OutputError, match="was not made by make_mini"):
        mini.build(tmp_path, "wixray", train=2, val=1)


@pytest.mark.parametrize("arguments", [{"name": "coco"}, {"train": 0}, {"val": 0}, {"height": 20}])
def test_impossible_arguments(tmp_path, arguments):
    with pytest.raises(ConfigError):
        mini.build(tmp_path, **{"name": "source", "train": 2, "val": 1, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mini.DOMAINS["source"], "scene", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mini.build(tmp_path, "source", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


def test_ndd20_has_polylines_and_equal_numbering(mini_root):
    for folder in ("ABOVE", "BELOW"):
        labels = json.loads((mini_root / "ndd20" / f"{folder}_LABELS.json").read_text())
        assert {entry["filename"] for entry in labels.values()} == {
            path.name for path in (mini_root / "ndd20" / folder).iterdir()
        }
        for key, entry in labels.items():
            assert key == f"{entry['filename']}{entry['size']}"
            assert (mini_root / "ndd20" / folder / entry["filename"]).stat().st_size == entry["size"]
            assert 1 <= len(entry["regions"]) <= 6 and "width" not in entry
            for region in entry["regions"]:
                assert (
                    region["shape_attributes"]["name"] == "polyline"
                    and region["region_attributes"]["object"] == "dolphin"
                )
    assert (mini_root / "ndd20/ABOVE/0.jpg").read_bytes() != (mini_root / "ndd20/BELOW/0.jpg").read_bytes()


def test_zerowaste_counts_from_zero_and_its_maps_agree(mini_root):
    for split in ("train", "val", "test"):
        labels = json.loads((mini_root / f"zerowaste/{split}/labels.json").read_text())
        assert labels["images"][0]["id"] == 0 and labels["annotations"][0]["id"] == 0
        assert [row["name"] for row in labels["categories"]] == ["rigid_plastic", "cardboard", "metal", "soft_plastic"]
        for image in labels["images"]:
            classes = np.asarray(Image.open(mini_root / f"zerowaste/{split}/sem_seg" / image["file_name"]))
            mine = {a["category_id"] for a in labels["annotations"] if a["image_id"] == image["id"]}
            assert set(np.unique(classes)) - {0} == mine and image["file_name"].endswith(".PNG")


def test_wixray_masks_overlap_on_a_white_ground(mini_root):
    labels = json.loads((mini_root / "wixray/annotations/instances_train2017.json").read_text())
    means = [np.asarray(Image.open(p)).mean() for p in (mini_root / "wixray/images/train2017").iterdir()]
    assert np.mean(means) > 230 and len(labels["categories"]) == 12
    covered = sum(a["area"] for a in labels["annotations"])
    union = 0
    for image in labels["images"]:
        shapes = [
            np.array(p).reshape(-1, 2)
            for a in labels["annotations"]
            if a["image_id"] == image["id"]
            for p in a["segmentation"]
        ]
        union += primitives.rasterise(shapes, image["height"], image["width"]).sum()
    assert covered > 1.05 * union


def test_cityscapes_maps_are_the_polygons_painted_in_order(mini_root):
    seen = set()
    for path in (mini_root / "cityscapes/gtFine/train/aachen").glob("*_polygons.json"):
        record = json.loads(path.read_text())
        stem = path.name.removesuffix("_polygons.json")
        instances = Image.open(path.with_name(f"{stem}_instanceIds.png"))
        labels = Image.open(path.with_name(f"{stem}_labelIds.png"))
        assert instances.mode.startswith("I;16") and labels.mode == "L"
        label_ids, instance_ids = rasterised(record["objects"], record["imgHeight"], record["imgWidth"])
        assert (np.asarray(instances) == instance_ids).all() and (np.asarray(labels) == label_ids).all()
        plain = np.where(instance_ids >= 1000, instance_ids // 1000, instance_ids)
        assert (plain == label_ids).all()
        seen |= {item["label"] for item in record["objects"]}
    assert {"road", "building", "sky", "ego vehicle"} <= seen and seen <= set(LABELS) | {"cargroup"}


def test_the_odd_objects_of_streets_all_occur():
    objects = [item for seed in range(30) for item in mini.cityscapes.scene(np.random.default_rng(seed), 96, 192)[1]]
    assert {"cargroup", "caravan", "license plate", "rider"} <= {item["label"] for item in objects}
    assert any(item.get("deleted") for item in objects)
    assert {"person", "car", "truck", "bus", "train", "motorcycle", "bicycle"} <= {item["label"] for item in objects}


def test_source_objects_are_labelled_where_they_are_seen(mini_root):
    """Visible masks do not overlap, and every class occurs."""
    rng = np.random.default_rng(0)
    classes = set()
    for _ in range(12):
        _, objects = mini.source.scene(rng, 96)
        total = np.sum([mask for _, mask in objects], axis=0)
        assert total.max() == 1 and all(mask.sum() >= primitives.SMALLEST_MASK for _, mask in objects)
        classes |= {category for category, _ in objects}
    assert classes == set(range(6))


def test_traced_outlines_give_the_mask_back():
    rng = np.random.default_rng(1)
    for _ in range(10):
        outline = primitives.place(primitives.blob(rng), (50, 40), (25, 18), 0.7)
        mask = primitives.rasterise([outline], 80, 100)
        again = primitives.rasterise(primitives.trace(mask), 80, 100)
        assert (mask ^ again).sum() <= 0.02 * mask.sum()
