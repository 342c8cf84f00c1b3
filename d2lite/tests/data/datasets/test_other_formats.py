import json

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_panoptic, register_coco_panoptic_separated
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.structures import BoxMode


def test_pascal_voc(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("000001\n000002\n")
    for image in ("000001", "000002"):
        (tmp_path / "Annotations" / f"{image}.xml").write_text(
            "<annotation><size><width>50</width><height>40</height></size>"
            "<object><name>dog</name><difficult>0</difficult>"
            "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"
        )
    record, _ = load_voc_instances(str(tmp_path), "val", ["cat", "dog"])
    assert record["file_name"] == str(tmp_path / "JPEGImages" / "000001.jpg")
    assert (record["image_id"], record["height"], record["width"]) == ("000001", 40, 50)
    assert record["annotations"] == [
        {"category_id": 1, "bbox": [0.0, 1.0, 10.0, 20.0], "bbox_mode": BoxMode.XYXY_ABS}
    ]


class TestCityscapesSemantic:
    def make(self, root):
        for folder in ("images", "labels"):
            (root / folder / "ulm").mkdir(parents=True)
        pixels = Image.fromarray(np.zeros((1024, 2048), np.uint8))
        pixels.save(root / "images" / "ulm" / "ulm_0_1_leftImg8bit.png")
        for kind in ("labelTrainIds", "labelIds", "instanceIds"):
            pixels.save(root / "labels" / "ulm" / f"ulm_0_1_gtFine_{kind}.png")
        polygons = {"imgHeight": 1024, "imgWidth": 2048, "objects": []}
        (root / "labels" / "ulm" / "ulm_0_1_gtFine_polygons.json").write_text(json.dumps(polygons))
        return str(root / "images"), str(root / "labels")

    def test_records(self, tmp_path):
        images, labels = self.make(tmp_path)
        assert load_cityscapes_semantic(images, labels) == [
            {
                "file_name": f"{images}/ulm/ulm_0_1_leftImg8bit.png",
                "sem_seg_file_name": f"{labels}/ulm/ulm_0_1_gtFine_labelTrainIds.png",
                "height": 1024,
                "width": 2048,
            }
        ]

    def test_missing_labels(self, tmp_path):
        images, labels = self.make(tmp_path)
        (tmp_path / "labels" / "ulm" / "ulm_0_1_gtFine_labelTrainIds.png").unlink()
        with pytest.raises((FileNotFoundError, AssertionError)):
            load_cityscapes_semantic(images, labels)


class TestPanoptic:
    META = {"thing_dataset_id_to_contiguous_id": {3: 0}, "stuff_dataset_id_to_contiguous_id": {8: 1}}

    def write(self, root):
        segments = [{"id": 1, "category_id": 3, "area": 4}, {"id": 2, "category_id": 8, "area": 5}]
        content = {"annotations": [{"image_id": 5, "file_name": "5.png", "segments_info": segments}]}
        (root / "pan.json").write_text(json.dumps(content))
        instances = {
            "images": [{"id": 5, "file_name": "5.jpg", "height": 2, "width": 2}],
            "categories": [{"id": 3, "name": "x"}],
            "annotations": [],
        }
        (root / "ins.json").write_text(json.dumps(instances))
        for folder, file in (("im", "5.jpg"), ("sem", "5.png"), ("pan", "5.png")):
            (root / folder).mkdir()
            Image.new("L", (2, 2)).save(root / folder / file)

    def test_one_annotation(self, tmp_path):
        self.write(tmp_path)
        images, segments = str(tmp_path / "im"), str(tmp_path / "pan")
        register_coco_panoptic("test_pan", self.META, images, segments, str(tmp_path / "pan.json"))
        (record,) = DatasetCatalog.get("test_pan")
        assert (record["file_name"], record["pan_seg_file_name"]) == (f"{images}/5.jpg", f"{segments}/5.png")
        assert [(s["category_id"], s["isthing"]) for s in record["segments_info"]] == [(0, True), (1, False)]
        assert MetadataCatalog.get("test_pan").label_divisor == 1000
        DatasetCatalog.remove("test_pan"), MetadataCatalog.remove("test_pan")

    def test_separated(self, tmp_path):
        self.write(tmp_path)
        register_coco_panoptic_separated(
            "test_pan", {}, str(tmp_path / "im"), "pan", "pan.json", str(tmp_path / "sem"), str(tmp_path / "ins.json")
        )
        (record,) = DatasetCatalog.get("test_pan_separated")
        assert record["image_id"] == 5
        assert record["sem_seg_file_name"] == str(tmp_path / "sem" / "5.png")
        assert len(DatasetCatalog.get("test_pan_stuffonly")) == 1
        for name in ("test_pan_separated", "test_pan_stuffonly"):
            DatasetCatalog.remove(name), MetadataCatalog.remove(name)
