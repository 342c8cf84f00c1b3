"""The mapper: geometry of masks through every augmentation, repeatable randomness, odd images."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.data.image_files import read_image
from lowrank_d2.data.mapper import LowRankMapper
from lowrank_d2.errors import ConfigError, TrainingError

SIZE = (96, 64)  # width, height


@pytest.fixture
def cfg():
    result = get_cfg()
    add_lowrank_config(result)
    result.SEED = 7
    result.INPUT.FORMAT = "RGB"
    result.INPUT.DATASET_MAPPER_NAME = "lowrank_instance"
    result.INPUT.IMAGE_SIZE = 80
    result.INPUT.MIN_SCALE, result.INPUT.MAX_SCALE = 0.5, 1.5
    result.INPUT.MIN_SIZE_TRAIN, result.INPUT.MIN_SIZE_TEST = (48, 64, 80), 32
    return result


def masks() -> list[np.ndarray]:
    """A rectangle and a triangle, whose pixels are 200 and 100 in the image of `record`."""
    found = np.zeros((2, SIZE[1], SIZE[0]), bool)
    found[0, 10:40, 8:50] = True
    found[1] = np.tri(SIZE[1], SIZE[0], -24, dtype=bool) & ~found[0]
    return list(found)


@pytest.fixture(params=["polygon", "rle", "uncompressed"])
def record(request, tmp_path):
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    annotations = []
    for category, (mask, grey) in enumerate(zip(masks(), (200, 100))):
        pixels[mask] = grey
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        if request.param == "polygon" and category == 0:
            segmentation = [[8, 10, 50, 10, 50, 40, 8, 40]]
        if request.param == "uncompressed":
            flat = mask.T.reshape(-1)
            edges = np.flatnonzero(np.diff(flat)) + 1
            segmentation["counts"] = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        annotations.append({"category_id": category, "segmentation": segmentation, "iscrowd": 0, "bbox": [0, 0, 1, 1]})
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "width": SIZE[0], "height": SIZE[1], "image_id": 1, "annotations": annotations}


@pytest.mark.parametrize("name", ["lowrank_instance", "coco_instance_lsj", "coco_instance_detr", "MaskDINO_semantic"])
@pytest.mark.parametrize("crop", [False, True])
def test_masks_follow_the_image(cfg, record, name, crop):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = crop, "relative_range", [0.6, 0.6]
    mapper = LowRankMapper(cfg)
    for position in range(12):
        sample = mapper({**record, "sample_position": position})
        grey, found = sample["image"][0].numpy().astype(int), sample["instances"]
        assert found.gt_masks.tensor.shape[1:] == sample["image"].shape[1:] == found.image_size
        for mask, category in zip(found.gt_masks.tensor.numpy(), found.gt_classes.tolist()):
            inner = coco_interior(mask)
            wanted = (200, 100)[category]
            if inner.sum() > 30:
                assert np.median(np.abs(grey[inner] - wanted)) <= 4
                assert (np.abs(grey[inner] - wanted) < 45).mean() > 0.93
        assert torch.equal(found.gt_boxes.tensor, found.gt_masks.get_bounding_boxes().tensor)


def coco_interior(mask: np.ndarray) -> np.ndarray:
    """The mask without its outermost two pixels."""
    for axis in (0, 1):
        for shift in (-2, 2):
            mask = mask & np.roll(mask, shift, axis)
    return mask


def test_polygons_and_run_lengths_agree_without_augmentation(record):
    mapper = LowRankMapper(True, augmentations=[])
    found = mapper(record)["instances"]
    assert (found.gt_masks.tensor.numpy() == np.stack(masks())).all()
    assert found.gt_boxes.tensor.tolist()[0] == [8, 10, 50, 40] and found.gt_classes.tolist() == [0, 1]


def test_a_sample_depends_on_seed_and_position_alone(cfg, record):
    mapper = LowRankMapper(cfg)
    first = [mapper({**record, "sample_position": position}) for position in range(4)]
    np.random.seed(123)
    np.random.rand(50)
    state = np.random.get_state()[1].copy()
    for position in (3, 0, 2, 1):
        again = LowRankMapper(cfg)({**record, "sample_position": position})
        assert torch.equal(again["image"], first[position]["image"])
        assert torch.equal(again["instances"].gt_masks.tensor, first[position]["instances"].gt_masks.tensor)
        assert again["sample_position"] == position
    assert (np.random.get_state()[1] == state).all()
    assert len({sample["image"].numpy().tobytes() for sample in first}) == 4
    cfg.SEED = 8
    assert not torch.equal(LowRankMapper(cfg)({**record, "sample_position": 0})["image"], first[0]["image"])


def test_without_a_position_numpy_decides(cfg, record):
    mapper = LowRankMapper(cfg)
    np.random.seed(1)
    first = mapper(record)["image"]
    assert not torch.equal(mapper(record)["image"], first)
    np.random.seed(1)
    assert torch.equal(mapper(record)["image"], first)


def test_jitter_keeps_the_aspect_ratio_and_the_canvas(cfg, record):
    cfg.INPUT.CANVAS = [40, 72]
    record["annotations"] = record["annotations"][:1]
    ratios = set()
    for position in range(30):
        sample = LowRankMapper(cfg)({**record, "sample_position": position})
        assert sample["image"].shape == (3, 40, 72)
        x0, y0, x1, y1 = sample["instances"].gt_boxes.tensor[0].tolist()
        if 0 < x0 and x1 < 72 and 0 < y0 and y1 < 40:
            ratios.add(round((x1 - x0) / (y1 - y0), 1))
    assert ratios and all(1.2 <= ratio <= 1.6 for ratio in ratios)  # 42 / 30 = 1.4, rounded to pixels


def test_testing_resizes_the_shortest_edge_and_keeps_the_original_size(cfg, record):
    sample = LowRankMapper(cfg, is_train=False)(record)
    assert sample["image"].shape == (3, 32, 48) and (sample["height"], sample["width"]) == (64, 96)
    assert "instances" not in sample and "annotations" not in sample
    with_truth = LowRankMapper(cfg, is_train=False, with_instances=True)(record)
    assert with_truth["instances"].image_size == (32, 48) and len(with_truth["instances"]) == 2


def test_crowds_are_left_out_and_images_may_be_empty(cfg, record):
    record["annotations"][0]["iscrowd"] = 1
    assert LowRankMapper(cfg, is_train=False, with_instances=True)(record)["instances"].gt_classes.tolist() == [1]
    record["annotations"] = []
    found = LowRankMapper(cfg)(record)["instances"]
    assert len(found) == 0 and found.gt_masks.tensor.shape == (0, 80, 80) and found.gt_boxes.tensor.shape == (0, 4)


def test_channels_are_in_the_order_of_the_format(cfg, tmp_path):
    Image.new("RGB", (20, 20), (10, 20, 30)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 20, "width": 20, "annotations": []}
    assert LowRankMapper(cfg, is_train=False)(record)["image"][:, 5, 5].tolist() == [10, 20, 30]
    cfg.INPUT.FORMAT = "BGR"
    assert LowRankMapper(cfg, is_train=False)(record)["image"][:, 5, 5].tolist() == [30, 20, 10]


def test_huge_jpegs_are_decoded_smaller_with_the_masks_in_place(cfg, tmp_path):
    pixels = np.full((1001, 1503, 3), 30, np.uint8)
    pixels[400:700, 600:1200] = 220
    Image.fromarray(pixels).save(tmp_path / "big.jpg", quality=95)
    polygon = [[600, 400, 1200, 400, 1200, 700, 600, 700]]
    record = {
        "file_name": str(tmp_path / "big.jpg"),
        "height": 1001,
        "width": 1503,
        "image_id": 1,
        "annotations": [{"category_id": 0, "segmentation": polygon, "iscrowd": 0}],
    }
    assert read_image(record["file_name"], smallest=(120, 120)).shape == (126, 188, 3)
    assert read_image(record["file_name"], smallest=(130, 130)).shape == (251, 376, 3)
    for position in range(6):
        sample = LowRankMapper(cfg)({**record, "sample_position": position})
        bright, mask = sample["image"][0].numpy() > 125, sample["instances"].gt_masks.tensor
        fill = sample["image"][0].numpy() == int(np.mean(cfg.MODEL.PIXEL_MEAN))
        assert (bright & ~fill & ~mask[0].numpy()).sum() + (~bright & mask[0].numpy()).sum() < 0.12 * mask.sum()


def test_deep_images_are_scaled_by_their_range_with_a_warning(tmp_path, caplog):
    deep = np.linspace(1000, 60000, 20 * 30).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pixels = read_image(str(tmp_path / "deep.png"))
    assert pixels.min() == 0 and pixels.max() == 255 and abs(pixels.mean() - 127.5) < 1
    assert "scaled" in caplog.text
    Image.fromarray(np.full((20, 30), 5.0, np.float32)).save(tmp_path / "flat.tif")
    assert (read_image(str(tmp_path / "flat.tif")) == 0).all()


@pytest.mark.parametrize(
    "mode, colour", [("L", 77), ("1", 1), ("CMYK", (0, 0, 0, 0)), ("RGBA", (9, 8, 7, 0)), ("P", 3)]
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (6, 4), colour).save(path)
    assert read_image(str(path)).shape == (4, 6, 3)
    if mode == "RGBA":
        assert read_image(str(path))[0, 0].tolist() == [9, 8, 7]


def test_exif_turns_the_image_or_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg")).shape == (30, 20, 3)
    assert read_image(str(tmp_path / "a.jpg"), exif="ignore").shape == (20, 30, 3)


def test_a_file_that_changed_since_the_check_stops_the_run(cfg, record):
    Image.new("RGB", (50, 50)).save(record["file_name"])
    with pytest.raises(TrainingError, match="50 x 50 pixels, its record says 96 x 64"):
        LowRankMapper(cfg)(record)
    with open(record["file_name"], "r+b") as stream:
        stream.truncate(60)
    with pytest.raises(TrainingError, match="image.png cannot be decoded"):
        LowRankMapper(cfg)(record)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("DATASET_MAPPER_NAME", "coco_instance_ljs", "coco_instance_lsj"),
        ("FORMAT", "RBG", "'RGB' or 'BGR'"),
        ("EXIF", "maybe", "'apply', 'ignore'"),
        ("RANDOM_FLIP", "both", "'horizontal'"),
        ("CANVAS", [3], r"\[height, width\]"),
        ("MIN_SCALE", 3.0, "in this order"),
    ],
)
def test_impossible_values_are_refused(cfg, key, value, words):
    cfg.INPUT[key] = value
    with pytest.raises(ConfigError, match=words):
        LowRankMapper(cfg)


def test_detectron2s_loader_runs_the_mapper(cfg, record):
    loader = build_detection_train_loader(
        [record] * 4, mapper=LowRankMapper(True, augmentations=[T.RandomFlip()]), total_batch_size=2, num_workers=0
    )
    batch = next(iter(loader))
    assert len(batch) == 2 and all(len(sample["instances"]) == 2 for sample in batch)


class Boxy:
    """Stands for a meta-architecture."""

    boxes_only = True


def test_models_without_masks_get_the_moved_and_clipped_boxes(cfg, record, monkeypatch):
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Boxy", Boxy)
    cfg.MODEL.META_ARCHITECTURE, cfg.INPUT.RANDOM_FLIP = "Boxy", "none"
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.MIN_SIZE_TRAIN = "coco_instance_detr", (128,)
    for annotation, box in zip(record["annotations"], ([8, 10, 42, 30], [90, 50, 20, 20])):
        del annotation["segmentation"]
        annotation |= {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
    record["annotations"].append({"category_id": 0, "bbox": [96, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0})
    record["annotations"].append({"category_id": 0, "bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1})
    instances = LowRankMapper(cfg)(record)["instances"]
    assert not instances.has("gt_masks") and instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_boxes.tensor.tolist() == [[16, 20, 100, 80], [180, 100, 192, 128]]
    record["annotations"] = []
    assert len(LowRankMapper(cfg)(record)["instances"]) == 0
