import pytest

import detectron2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, builtin_meta, get_lvis_instances_meta, lvis_v1_categories, register_coco_panoptic

lite_only = pytest.mark.skipif(getattr(detectron2, "__runtime__", None) != "lite", reason="a full Detectron2 has this")


def test_coco_classes():
    metadata = MetadataCatalog.get("coco_2017_val")
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == 80
    assert (metadata.thing_classes[0], metadata.thing_classes[79]) == ("person", "toothbrush")
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79
    assert metadata.json_file.endswith("coco/annotations/instances_val2017.json")
    assert metadata.thing_colors[0] == [220, 20, 60]


@pytest.mark.parametrize("name", ["coco_2014_valminusminival", "keypoints_coco_2017_val_100"])
def test_registered_names(name):
    assert name in DatasetCatalog.list()


def test_file_names():
    images, annotations = builtin._PREDEFINED_SPLITS_COCO["coco_person"]["keypoints_coco_2017_val_100"]
    assert (images, annotations) == ("coco/val2017", "coco/annotations/person_keypoints_val2017_100.json")
    images, annotations = builtin._PREDEFINED_SPLITS_COCO["coco"]["coco_2014_minival"]
    assert (images, annotations) == ("coco/val2014", "coco/annotations/instances_minival2014.json")


def test_panoptic_metadata():
    separated = builtin_meta._get_builtin_metadata("coco_panoptic_separated")
    assert len(separated["stuff_classes"]) == 54
    assert separated["stuff_classes"][:2] == ["things", "banner"]
    assert "tree" in separated["stuff_classes"]
    standard = builtin_meta._get_builtin_metadata("coco_panoptic_standard")
    assert len(standard["stuff_classes"]) == 133
    assert standard["stuff_dataset_id_to_contiguous_id"][200] == 132


def test_cityscapes_metadata():
    metadata = builtin_meta._get_builtin_metadata("cityscapes")
    assert metadata["thing_classes"] == "person rider car truck bus train motorcycle bicycle".split()
    assert len(metadata["stuff_classes"]) == 19
    assert builtin_meta.CITYSCAPES_CATEGORIES[-1]["trainId"] == 18


def test_keypoints():
    metadata = MetadataCatalog.get("keypoints_coco_2017_train")
    assert len(metadata.keypoint_names) == 17
    used = {name for first, second, _ in metadata.keypoint_connection_rules for name in (first, second)}
    assert used <= set(metadata.keypoint_names)


def test_unknown_metadata():
    with pytest.raises(KeyError):
        builtin_meta._get_builtin_metadata("cocoa")


@lite_only
def test_what_is_left_out_refuses():
    with pytest.raises(detectron2.NotInLiteRuntime, match="lvis"):
        get_lvis_instances_meta("lvis_v1")
    with pytest.raises(detectron2.NotInLiteRuntime, match="LVIS_CATEGORIES"):
        len(lvis_v1_categories.LVIS_CATEGORIES)
    with pytest.raises(detectron2.NotInLiteRuntime, match="register_all_ade20k"):
        builtin.register_all_ade20k("root")
    with pytest.raises(detectron2.NotInLiteRuntime, match="register_coco_panoptic"):
        register_coco_panoptic("name", {}, "images", "panoptic", "panoptic.json")
