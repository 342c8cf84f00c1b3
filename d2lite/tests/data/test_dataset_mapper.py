import copy

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode


@pytest.fixture
def record(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, 0] % 4).save(tmp_path / "labels.png")

    def instance(x, y, iscrowd=0):
        polygon = [x, y, x + 6.0, y, x + 6.0, y + 8.0, x, y + 8.0]
        return {
            "bbox": [x, y, 6, 8],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 1,
            "iscrowd": iscrowd,
            "segmentation": [polygon],
            "keypoints": [x + 1, y + 1, 2],
        }

    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "image_id": 7,
        "annotations": [instance(2, 3), instance(20, 5), instance(5, 5, iscrowd=1)],
    }


def mapper(is_train=True, augmentations=(T.HFlipTransform(30),), **kwargs):
    return DatasetMapper(is_train, augmentations=list(augmentations), image_format="RGB", **kwargs)


def test_training(record):
    before = copy.deepcopy(record)
    out = mapper()(record)
    assert record == before
    pixels = np.asarray(Image.open(record["file_name"]))
    assert out["image"].dtype == torch.uint8
    assert np.array_equal(out["image"].numpy(), pixels[:, ::-1].transpose(2, 0, 1))
    assert out["sem_seg"].dtype == torch.int64
    assert np.array_equal(out["sem_seg"].numpy(), pixels[:, ::-1, 0] % 4)
    assert (out["height"], out["width"], out["image_id"]) == (20, 30, 7)
    # The crowd is left out; masks and keypoints are not asked for.
    assert out["instances"].gt_boxes.tensor.tolist() == [[22, 3, 28, 11], [4, 5, 10, 13]]
    assert sorted(out["instances"].get_fields()) == ["gt_boxes", "gt_classes"]
    assert "annotations" not in out and "sem_seg_file_name" not in out


def test_inference_drops_annotations(record):
    out = mapper(is_train=False, augmentations=[T.Resize((40, 60))])(record)
    assert "annotations" not in out and "instances" not in out
    assert out["image"].shape == (3, 40, 60)
    assert (out["height"], out["width"]) == (20, 30)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_boxes_from_masks_after_a_crop(record, mask_format):
    crop = T.CropTransform(4, 0, 20, 20)
    rotated = [T.RotationTransform(20, 30, 45, expand=False), crop]
    out = mapper(augmentations=[crop], use_instance_mask=True, recompute_boxes=True, instance_mask_format=mask_format)(
        {key: value for key, value in record.items() if key != "sem_seg_file_name"}
    )
    assert out["instances"].gt_boxes.tensor.tolist() == [[0, 3, 4, 11], [16, 5, 20, 13]]
    loose = mapper(augmentations=rotated, use_instance_mask=True)(record)["instances"]
    tight = mapper(augmentations=rotated, use_instance_mask=True, recompute_boxes=True)(record)["instances"]
    assert (tight.gt_boxes.area() <= loose.gt_boxes.area()).all()


def test_what_is_cropped_away_is_left_out(record):
    out = mapper(augmentations=[T.CropTransform(15, 0, 15, 20)], use_instance_mask=True)(record)
    assert len(out["instances"]) == 1


def test_keypoints(record):
    out = mapper(use_keypoint=True, keypoint_hflip_indices=np.array([0]))(record)
    assert out["instances"].gt_keypoints.tensor[0].tolist() == [[27, 4, 2]]


def test_wrong_size(record):
    with pytest.raises(SizeMismatchError):
        mapper()({**record, "height": 30, "width": 20})


def test_from_config(record):
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    train = DatasetMapper(cfg, True)
    assert [type(a) for a in train.augmentations.augs] == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]
    assert train.recompute_boxes == cfg.MODEL.MASK_ON
    assert train.image_format == "BGR"
    assert min(train(record)["image"].shape[1:]) == 40
    assert [type(a) for a in DatasetMapper(cfg, is_train=False).augmentations.augs] == [T.ResizeShortestEdge]
