"""Registration and reading of the datasets by name."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lowrank_d2.data.check import check_dataset
from lowrank_d2.data.datasets import load, register_all, register_json, register_own, split_records
from lowrank_d2.data.datasets.ndd20 import split_names
from lowrank_d2.data.datasets.wixray import CLASSES as WIXRAY
from lowrank_d2.data.segmentations import decode, encode_ids
from lowrank_d2.data.truth import write_evaluation_json
from lowrank_d2.errors import ConfigError, DataError

NAMES = [
    "ndd20_train",
    "ndd20_val",
    "ndd20_all_train",
    "ndd20_all_val",
    "zerowaste_train",
    "zerowaste_val",
    "zerowaste_test",
    "wixray_train",
    "wixray_val",
    "cityscapes_instance_train",
    "cityscapes_instance_val",
    "source_train",
    "source_val",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_generated_dataset_passes_the_check(registered, name):
    data = check_dataset(name)
    assert [problem.kind for problem in data.report if problem.level != "info"] == []
    records = DatasetCatalog.get(name)
    assert records and len({record["image_id"] for record in records}) == len(records)
    classes = MetadataCatalog.get(name).thing_classes
    for record in records:
        for annotation in record["annotations"]:
            assert 0 <= annotation["category_id"] < len(classes)
            mask = decode(annotation["segmentation"], record["height"], record["width"])
            x, y, w, h = annotation["bbox"]
            rows, columns = np.nonzero(mask)
            assert abs(columns.min() - x) <= 1.5 and abs(columns.max() + 1 - x - w) <= 1.5
            assert abs(rows.min() - y) <= 1.5 and abs(rows.max() + 1 - y - h) <= 1.5


@pytest.mark.parametrize("name", NAMES)
def test_detectron2s_own_mapper_reads_the_records(registered, name):
    mapper = DatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge(96, 400)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    for record in DatasetCatalog.get(name)[:3]:
        sample = mapper(record)
        assert len(sample["instances"]) == sum(not annotation["iscrowd"] for annotation in record["annotations"])
        assert len(sample["instances"]) == 0 or sample["instances"].gt_masks.tensor.any(dim=2).any(dim=1).all()


def test_the_registered_names_and_metadata(registered):
    assert set(NAMES) <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("ndd20_val").thing_classes == ["dolphin"]
    assert MetadataCatalog.get("wixray_val").thing_classes == list(WIXRAY)
    assert MetadataCatalog.get("wixray_val").evaluator_type == "coco"
    assert MetadataCatalog.get("cityscapes_instance_val").evaluator_type == "cityscapes_instance"


def test_registering_again_is_silent_and_a_strangers_name_is_not():
    register_all()
    register_all()
    DatasetCatalog.remove("wixray_val")
    DatasetCatalog.register("wixray_val", json.dumps)
    try:
        with pytest.raises(ConfigError, match="'wixray_val'.*by json"):
            register_all()
    finally:
        DatasetCatalog.remove("wixray_val")
        register_all()


def test_a_name_taken_through_detectron2s_helper_names_the_file_too():
    register_all()
    DatasetCatalog.remove("wixray_val")
    MetadataCatalog.remove("wixray_val")
    register_coco_instances("wixray_val", {}, "theirs/val.json", "theirs")
    try:
        with pytest.raises(ConfigError, match="by detectron2.data.datasets.coco for theirs/val.json"):
            register_all()
    finally:
        DatasetCatalog.remove("wixray_val")
        MetadataCatalog.remove("wixray_val")
        register_all()


def test_an_unknown_name_gets_its_neighbours():
    with pytest.raises(ConfigError, match="ndd20_train"):
        load("ndd20_trian")


def test_the_missing_files_of_another_dataset_are_named(tmp_path):
    name = "somebody_elses"
    register_coco_instances(name, {}, str(tmp_path / "absent.json"), str(tmp_path))
    try:
        with pytest.raises(DataError, match=r"absent\.json is missing \(\$DETECTRON2_DATASETS is"):
            load(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "part"])
def test_a_wrong_root_is_explained(tmp_path, monkeypatch, kind):
    register_all()
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("")
    elif kind != "missing":
        root.mkdir()
    if kind == "part":
        (root / "zerowaste/train/data").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    with pytest.raises(DataError) as error:
        DatasetCatalog.get("zerowaste_train")
    text = str(error.value)
    assert "$DETECTRON2_DATASETS" in text and str(root) in text and "train/labels.json" in text
    assert error.value.exit_code == 2


def test_the_unpacked_archives_are_accepted_too(registered, tmp_path, monkeypatch):
    (tmp_path / "zerowaste").mkdir()
    (tmp_path / "zerowaste/splits_final_deblurred").symlink_to(registered / "zerowaste")
    (tmp_path / "ndd20").mkdir()
    (tmp_path / "ndd20/NDD20").symlink_to(registered / "ndd20")
    before = {name: len(DatasetCatalog.get(name)) for name in ("zerowaste_test", "ndd20_train")}
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert {name: len(DatasetCatalog.get(name)) for name in before} == before


def test_the_split_of_ndd20():
    names = [f"{folder}/{number}.jpg" for folder in ("BELOW", "ABOVE") for number in range(2201)]
    parts = {(split, every): split_names(names, split, every) for split in ("train", "val") for every in (False, True)}
    assert {key: len(part) for key, part in parts.items()} == {
        ("train", False): 1500,
        ("val", False): 300,
        ("train", True): 3522,
        ("val", True): 880,
    }
    assert parts["train", False][0] == "ABOVE/831.jpg" and parts["val", False][0] == "BELOW/1842.jpg"
    above = [sum(name.startswith("ABOVE") for name in parts[split, False]) for split in ("train", "val")]
    assert above == [738, 157]
    prints = [
        hashlib.sha256("\n".join(parts[key]).encode()).hexdigest()[:16]
        for key in (("train", False), ("val", False), ("val", True))
    ]
    assert prints == ["16f17e7b45cd163a", "4bcd7882207e0a5b", "6ddd773ded335337"]
    for train in (parts["train", False], parts["train", True]):
        for val in (parts["val", False], parts["val", True]):
            assert not set(train) & set(val)
    assert set(parts["train", False]) < set(parts["train", True]) and set(parts["val", False]) < set(parts["val", True])


def test_a_small_ndd20_is_divided_five_to_one(registered):
    train, val = DatasetCatalog.get("ndd20_train"), DatasetCatalog.get("ndd20_val")
    assert len(val) == round((len(train) + len(val)) / 6)
    assert DatasetCatalog.get("ndd20_all_val") == val
    for record in train:
        number = int(record["file_name"].split("/")[-1].split(".")[0])
        assert record["image_id"] == number + (100_000 if "BELOW" in record["file_name"] else 0)


def test_ndd20_reports_what_is_missing_or_no_polyline(registered, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(registered / "ndd20", root / "ndd20")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    labels = json.loads((root / "ndd20/ABOVE_LABELS.json").read_text())
    for entry in labels.values():
        entry["regions"][0]["shape_attributes"] = {"name": "circle", "cx": 3}
    (root / "ndd20/ABOVE_LABELS.json").write_text(json.dumps(labels))
    for path in (root / "ndd20/BELOW").iterdir():
        path.unlink()
    report = load("ndd20_train").report
    assert report["bad-region"].count > 0 and report["missing-image"].count > 0
    with pytest.raises(DataError, match="BELOW/"):
        DatasetCatalog.get("ndd20_train")
    (root / "ndd20/ABOVE_LABELS.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="no VIA file"):
        load("ndd20_train")


def test_run_lengths_of_a_map_of_ids():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (37, 53)).astype(np.int32) * 7000
    found = encode_ids(ids)
    assert set(found) == {7000, 14000, 21000}
    for value, rle in found.items():
        assert (decode(rle, 37, 53) == (ids == value)).all()
    assert encode_ids(np.zeros((5, 5), np.int32)) == {}
    assert (decode(encode_ids(np.full((5, 5), 3))[3], 5, 5)).all()


def test_cityscapes_instances_are_those_of_the_png(registered):
    groups = 0
    for record in DatasetCatalog.get("cityscapes_instance_train"):
        path = (
            record["file_name"]
            .replace("leftImg8bit/", "gtFine/")
            .replace("_leftImg8bit.png", "_gtFine_instanceIds.png")
        )
        ids = np.asarray(Image.open(path)).astype(int)
        wanted = (24, 25, 26, 27, 28, 31, 32, 33)
        values = [v for v in np.unique(ids) if (v if v < 1000 else v // 1000) in wanted]
        assert len(record["annotations"]) == len(values)
        for value, annotation in zip(
            values, sorted(record["annotations"], key=lambda a: (1 - a["iscrowd"], a["category_id"]))
        ):
            assert annotation["iscrowd"] == int(value < 1000)
            assert wanted[annotation["category_id"]] == (value if value < 1000 else value // 1000)
        union = np.any([decode(a["segmentation"], *ids.shape) for a in record["annotations"]] or [ids > 10**6], axis=0)
        assert (union == np.isin(ids, values)).all()
        groups += sum(a["iscrowd"] for a in record["annotations"])
    assert groups > 0


def test_cityscapes_labels_are_decoded_once(registered, monkeypatch):
    first = DatasetCatalog.get("cityscapes_instance_val")
    monkeypatch.setattr("lowrank_d2.data.datasets.cityscapes._decode", lambda path: 1 / 0)
    assert DatasetCatalog.get("cityscapes_instance_val") == first


def test_a_changed_label_is_decoded_again(registered, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(registered / "cityscapes", root / "cityscapes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    records = DatasetCatalog.get("cityscapes_instance_val")
    assert MetadataCatalog.get("cityscapes_instance_val").gt_dir == str(root / "cityscapes/gtFine/val")
    first = next((root / "cityscapes/gtFine/val").rglob("*_instanceIds.png"))
    Image.fromarray(np.zeros((128, 256), np.uint16)).save(first)
    changed = DatasetCatalog.get("cityscapes_instance_val")
    assert sum(len(r["annotations"]) for r in changed) < sum(len(r["annotations"]) for r in records)
    first.write_bytes(b"broken")
    with pytest.raises(DataError, match="instanceIds"):
        DatasetCatalog.get("cityscapes_instance_val")
    first.unlink()
    with pytest.raises(DataError, match=first.name):
        DatasetCatalog.get("cityscapes_instance_val")


def test_own_data_with_a_validation_file(own):
    own.save()
    train = own.json
    own.content["categories"] = [{"id": 5, "name": "bee"}, {"id": 6, "name": "ant"}]
    for annotation in own.annotations:
        annotation["category_id"] += 4
    own.json = own.json.with_name("b.json")
    own.save()
    names = register_own(train, own.images, own.json, own.images)
    assert names.classes == ["ant", "bee"] == MetadataCatalog.get(names.val).thing_classes
    first = [
        [a["category_id"] for r in DatasetCatalog.get(name) for a in r["annotations"]]
        for name in (names.train, names.val)
    ]
    assert first[0] == [1 - category for category in first[1]]  # the same ids, the other way round by name


def test_the_split_is_a_tenth_and_depends_on_ids_and_seed_alone():
    records = [{"image_id": number, "annotations": [{}]} for number in range(200)]
    train, val = split_records(records, seed=3)
    assert len(val) == 20 and len(train) == 180 and not {r["image_id"] for r in train} & {r["image_id"] for r in val}
    assert split_records(records[::-1], seed=3) == (train, val)
    assert split_records(records, seed=4)[1] != val
    assert len(split_records(records[:2])[1]) == 1


@pytest.mark.parametrize("seed", range(10))
def test_the_split_holds_out_its_share_of_images_with_and_without_objects(seed):
    records = [{"image_id": number, "annotations": [{}] * (number % 10 == 0)} for number in range(100)]
    val = split_records(records, seed)[1]
    assert [sum(bool(record["annotations"]) == some for record in val) for some in (True, False)] == [1, 9]
    one_of_two = split_records(records[:2], seed)[1]
    assert one_of_two == records[1:2]


def test_one_image_cannot_be_split(own):
    own.content["images"], own.content["annotations"] = own.content["images"][:1], own.annotations[:1]
    with pytest.raises(DataError, match="a.json has 1 image, too few to hold one out .* --val-json"):
        register_own(own.save().json, own.images)


@pytest.mark.parametrize("name", ["zerowaste_val", "ndd20_val"])
def test_perfect_results_have_ap_100_on_the_written_truth(registered, tmp_path, name):
    """ZeroWaste's annotation ids start at 0, which COCO's code takes for no match."""
    path = write_evaluation_json(name, tmp_path)
    assert MetadataCatalog.get(name).json_file == str(path)
    truth = COCO(str(path))
    assert min(truth.anns) == 1 and len(truth.imgs) == len(DatasetCatalog.get(name))
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": truth.annToRLE(a), "score": 0.9}
        for a in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert write_evaluation_json(name, tmp_path) == path
    other = write_evaluation_json(name, tmp_path / "other")
    assert MetadataCatalog.get(name).json_file == str(other)


def test_the_truth_keeps_the_files_category_ids(own, tmp_path):
    own.content["categories"] = [{"id": 3, "name": "ant"}, {"id": 8, "name": "bee"}]
    for annotation in own.annotations:
        annotation["category_id"] = {1: 3, 2: 8}[annotation["category_id"]]
    register_json("test_datasets_own", own.save().json, own.images)
    truth = json.loads(write_evaluation_json("test_datasets_own", tmp_path).read_text())
    assert [row["id"] for row in truth["categories"]] == [3, 8]
    assert [a["category_id"] for a in truth["annotations"]] == [8, 3, 8, 3] and [
        a["area"] for a in truth["annotations"]
    ] == [100] * 4
