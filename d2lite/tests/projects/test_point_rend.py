import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.projects.point_rend import ColorAugSSDTransform, add_pointrend_config
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample

RAMP = torch.arange(6.0).view(1, 1, 2, 3)


def test_keys():
    cfg = get_cfg()
    add_pointrend_config(cfg)
    assert cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS == 196 and cfg.MODEL.ROI_MASK_HEAD.FC_DIM == 1024
    assert cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER == 1e-5 and cfg.INPUT.COLOR_AUG_SSD is False


def test_point_sample():
    centers = torch.tensor([[[x / 6, y / 4] for y in (1, 3) for x in (1, 3, 5)]])
    assert torch.allclose(point_sample(RAMP, centers, align_corners=False), RAMP.view(1, 1, 6), atol=1e-6)
    grid = centers.view(1, 2, 3, 2)
    assert torch.allclose(point_sample(RAMP, grid, align_corners=False), RAMP, atol=1e-6)
    between = torch.tensor([[[1 / 3, 0.25]]])
    assert point_sample(RAMP, between, align_corners=False).item() == pytest.approx(0.5)


def test_uncertain_points_come_first():
    logits = torch.full((2, 1, 8, 8), 9.0)
    logits[:, :, :, :2] = 0
    torch.manual_seed(0)
    points = get_uncertain_point_coords_with_randomness(logits, lambda values: -values.abs(), 40, 5, 0.5)
    assert points.shape == (2, 40, 2) and (points >= 0).all() and (points < 1).all()
    assert (points[:, :20, 0] < 0.3).all() and (points[:, 20:, 0] > 0.3).any()
    with pytest.raises(AssertionError):
        get_uncertain_point_coords_with_randomness(logits, lambda values: values, 4, 0.5, 0.5)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_colour_augmentation(order):
    image = np.random.RandomState(0).randint(0, 256, (6, 5, 3), dtype=np.uint8)
    before, augment = image.copy(), ColorAugSSDTransform(order)
    random.seed(1)
    seen = [augment.apply_image(image) for _ in range(12)]
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in seen)
    assert np.array_equal(image, before) and len({each.tobytes() for each in seen}) > 6
    coords = np.ones((2, 2))
    assert augment.apply_coords(coords) is coords and augment.apply_segmentation(image) is image


def test_colour_augmentation_keeps_grey_grey():
    grey = np.full((2, 2, 3), 100, dtype=np.uint8)
    for seed in range(8):
        random.seed(seed)
        out = ColorAugSSDTransform("BGR").apply_image(grey)
        assert (out == out[..., :1]).all() and 34 <= out.min() <= 198
