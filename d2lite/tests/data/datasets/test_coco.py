import copy
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

import detectron2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)

SQUARE = [2, 3, 8, 3, 8, 7, 2, 7]


def annotation(annotation_id, image_id, category_id=9, **more):
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2, 3, 6, 4],
        "area": 24,
        "iscrowd": 0,
        **more,
    }


@pytest.fixture
def content():
    return {
        "images": [{"id": i, "height": 10, "width": 12, "file_name": f"{i}.jpg"} for i in (7, 3)],
        "categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}],
        "annotations": [
            annotation(1, 3, segmentation=[SQUARE, [1, 2, 3]]),
            annotation(2, 3, 4, segmentation=[[1, 2, 3, 4]]),
            annotation(3, 7, 4, segmentation=[], score=0.5),
        ],
    }


@pytest.fixture
def name():
    yield "test_cocojson"
    DatasetCatalog.pop("test_cocojson", None)
    MetadataCatalog.pop("test_cocojson", None)


@pytest.fixture
def load(tmp_path, name):
    def run(content, dataset_name=name, **kwargs):
        file = tmp_path / "a.json"
        file.write_text(json.dumps(content))
        return load_coco_json(str(file), "root", dataset_name, **kwargs)

    return run


class TestLoad:
    def test_records(self, content, load, name):
        first, second = load(content, extra_annotation_keys=["score"])
        assert (first["file_name"], first["image_id"], first["height"], first["width"]) == ("root/3.jpg", 3, 10, 12)
        # Annotation 2 has no valid polygon and is gone; 3 has no mask and stays.
        assert first["annotations"] == [
            {
                "iscrowd": 0,
                "bbox": [2, 3, 6, 4],
                "category_id": 1,
                "segmentation": [SQUARE],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
        ]
        assert second["annotations"] == [
            {"iscrowd": 0, "bbox": [2, 3, 6, 4], "category_id": 0, "score": 0.5, "bbox_mode": BoxMode.XYWH_ABS}
        ]
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["a", "b"]
        assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}

    def test_without_a_name_ids_stay(self, content, load):
        assert load(content, None)[0]["annotations"][0]["category_id"] == 9

    def test_rle(self, content, load):
        mask = np.zeros((10, 12), np.uint8)
        mask[3:7, 2:8] = 1
        compressed = mask_util.encode(np.asfortranarray(mask))
        uncompressed = {"size": [10, 12], "counts": [23, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 43]}
        for rle in (uncompressed, {"size": [10, 12], "counts": compressed["counts"].decode()}):
            content["annotations"] = [annotation(1, 3, segmentation=rle)]
            assert np.array_equal(mask_util.decode(load(content)[0]["annotations"][0]["segmentation"]), mask)

    def test_keypoints_move_by_half_a_pixel(self, content, load):
        content["annotations"] = [annotation(1, 3, keypoints=[1, 2, 2, 5, 6, 0])]
        assert load(content)[0]["annotations"][0]["keypoints"] == [1.5, 2.5, 2, 5.5, 6.5, 0]

    def test_unlabelled(self, content, load):
        del content["annotations"]
        assert [record["annotations"] for record in load(content)] == [[], []]

    @pytest.mark.parametrize(
        "change, error",
        [
            (lambda c: c["annotations"][0].update(id=3), AssertionError),
            (lambda c: c["annotations"][0].update(ignore=1), AssertionError),
            (lambda c: c["annotations"][0].update(bbox=[]), ValueError),
            (lambda c: c["annotations"][0].update(category_id=77), KeyError),
            (lambda c: c["images"][0].pop("height"), KeyError),
            (lambda c: c.pop("categories"), KeyError),
            (lambda c: c.update(categories=[]), ValueError),
        ],
    )
    def test_bad_files(self, content, load, change, error):
        change(content)
        with pytest.raises(error):
            load(content)


class TestRegister:
    def test_is_lazy(self, tmp_path, content, name):
        file = tmp_path / "a.json"
        register_coco_instances(name, {"extra": 1}, str(file), "root")
        file.write_text(json.dumps(content))
        assert len(DatasetCatalog.get(name)) == 2
        metadata = MetadataCatalog.get(name)
        assert (metadata.json_file, metadata.image_root, metadata.evaluator_type, metadata.extra) == (
            str(file), "root", "coco", 1,
        )

    def test_again(self, name):
        register_coco_instances(name, {}, "a.json", "root")
        register_coco_instances(name, {}, "a.json", "root")
        with pytest.raises(AssertionError):
            register_coco_instances(name, {}, "b.json", "root")


class TestConvert:
    @pytest.fixture
    def records(self, name):
        mask = np.zeros((10, 12), np.uint8)
        mask[:2, :3] = 1
        rle = mask_util.encode(np.asfortranarray(mask))
        records = [
            {
                "file_name": "x.jpg",
                "image_id": 5,
                "height": 10,
                "width": 12,
                "annotations": [
                    {"bbox": [2, 3, 8, 7], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "segmentation": [SQUARE]},
                    {"bbox": [0, 0, 3, 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": rle},
                    {
                        "bbox": [0, 0, 3, 2],
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": 0,
                        "iscrowd": 1,
                        "keypoints": [1.5, 2.5, 2, 0.5, 0.5, 0],
                    },
                ],
            }
        ]
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={4: 0, 9: 1})
        return records

    def test_content(self, name, records):
        out = convert_to_coco_dict(name)
        assert out["images"] == [{"id": 5, "width": 12, "height": 10, "file_name": "x.jpg"}]
        assert out["categories"] == [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}]
        polygon, rle, keypoints = out["annotations"]
        assert [a["id"] for a in out["annotations"]] == [1, 2, 3]
        assert (polygon["category_id"], polygon["bbox"], polygon["area"]) == (9, [2, 3, 6, 4], 24)
        assert (rle["category_id"], rle["area"], type(rle["segmentation"]["counts"])) == (4, 6, str)
        assert keypoints["keypoints"] == [1.0, 2.0, 2, 0.0, 0.0, 0]
        assert (keypoints["num_keypoints"], keypoints["iscrowd"]) == (1, 1)

    @mended
    def test_records_stay_as_they_are(self, name, records):
        before = copy.deepcopy(records)
        convert_to_coco_dict(name)
        assert records == before

    def test_round_trip(self, tmp_path, name, records):
        file = str(tmp_path / "sub" / "out.json")
        convert_to_coco_json(name, file)
        (loaded,) = load_coco_json(file, "", name)
        assert loaded["annotations"][0]["segmentation"] == [SQUARE]
        assert [a["category_id"] for a in loaded["annotations"]] == [1, 0, 0]

    def test_cache(self, tmp_path, name, records, caplog):
        file = tmp_path / "out.json"
        convert_to_coco_json(name, str(file))
        written = file.stat().st_mtime_ns
        with caplog.at_level(logging.INFO):
            convert_to_coco_json(name, str(file))
        assert file.stat().st_mtime_ns == written
        convert_to_coco_json(name, str(file), allow_cached=False)
        assert file.stat().st_mtime_ns > written

    @mended
    @pytest.mark.parametrize("damage", [None, "", "[]", '{"info": {}}'])
    def test_a_stale_cache_is_replaced(self, tmp_path, name, records, damage):
        file = tmp_path / "out.json"
        convert_to_coco_json(name, str(file))
        if damage is None:
            records[0]["annotations"].pop()
        else:
            file.write_text(damage)
        convert_to_coco_json(name, str(file))
        assert len(json.loads(file.read_text())["annotations"]) == (2 if damage is None else 3)
        assert not list(tmp_path.glob("*.tmp"))


def test_load_sem_seg(tmp_path):
    for folder, names in (("im", ["1.jpg", "2.jpg", "3.jpg"]), ("gt", ["1.png", "3.png"])):
        (tmp_path / folder).mkdir()
        for file in names:
            Image.new("L", (2, 2)).save(tmp_path / folder / file)
    records = load_sem_seg(str(tmp_path / "gt"), str(tmp_path / "im"))
    assert [record["file_name"][-5:] for record in records] == ["1.jpg", "3.jpg"]
    for record in records:
        assert record["sem_seg_file_name"] == record["file_name"].replace("/im/", "/gt/").replace(".jpg", ".png")


@mended
def test_load_sem_seg_below_a_folder_that_a_handler_resolves(tmp_path, monkeypatch):
    """Pairs are found by their place below the local copy, wherever that lies."""
    for kind, file in (("im", "a/1.jpg"), ("gt", "a/1.png")):
        (tmp_path / "cache" / f"{kind}0" / "a").mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "cache" / f"{kind}0" / file)
    local = {f"far://{kind}/": str(tmp_path / "cache" / f"{kind}0") for kind in ("im", "gt")}
    monkeypatch.setattr(PathManager, "get_local_path", local.__getitem__)
    (record,) = load_sem_seg("far://gt/", "far://im/")
    assert record["file_name"] == str(tmp_path / "cache/im0/a/1.jpg")
    assert record["sem_seg_file_name"] == str(tmp_path / "cache/gt0/a/1.png")
