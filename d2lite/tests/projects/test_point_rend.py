import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.projects.point_rend import ColorAugSSDTransform, add_pointrend_config
from detectron2.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    get_uncertain_point_coords_on_grid,
    get_uncertain_point_coords_with_randomness,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_labels,
)
from detectron2.structures import BitMasks, Boxes, Instances

RAMP = torch.arange(6.0).view(1, 1, 2, 3)


def test_keys():
    cfg = get_cfg()
    add_pointrend_config(cfg)
    assert cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS == 196 and cfg.MODEL.ROI_MASK_HEAD.FC_DIM == 1024
    assert cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER == 1e-5 and cfg.INPUT.COLOR_AUG_SSD is False


def test_point_sample():
    centres = torch.tensor([[[1 / 6, 1 / 4], [5 / 6, 3 / 4], [1 / 2, 1 / 2]]])
    assert point_sample(RAMP, centres, align_corners=False)[0, 0].tolist() == pytest.approx([0, 5, 2.5], abs=1e-6)
    grid = generate_regular_grid_point_coords(1, 3, "cpu")
    assert grid.shape == (1, 9, 2) and grid[0, 1].tolist() == pytest.approx([0.5, 1 / 6])
    assert point_sample(RAMP, grid.view(1, 3, 3, 2), align_corners=False).shape == (1, 1, 3, 3)


def test_uncertain_points_come_first():
    logits = torch.full((2, 1, 8, 8), 9.0)
    logits[:, :, :, :2] = 0
    torch.manual_seed(0)
    points = get_uncertain_point_coords_with_randomness(logits, lambda values: -values.abs(), 40, 5, 0.5)
    assert points.shape == (2, 40, 2) and (points >= 0).all() and (points < 1).all()
    assert (points[:, :20, 0] < 0.3).all() and (points[:, 20:, 0] > 0.3).any()
    with pytest.raises(AssertionError):
        get_uncertain_point_coords_with_randomness(logits, lambda values: values, 4, 0.5, 0.5)


def test_uncertain_points_on_a_grid():
    indices, points = get_uncertain_point_coords_on_grid(RAMP, 2)
    assert indices.tolist() == [[5, 4]] and points[0, 0].tolist() == pytest.approx([5 / 6, 3 / 4])
    assert get_uncertain_point_coords_on_grid(RAMP, 99)[0].shape == (1, 6)


def test_points_of_boxes():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]])
    points = torch.full((2, 1, 2), 0.5)
    assert get_point_coords_wrt_image(boxes, points).tolist() == [[[1, 1]], [[2, 1]]]
    features = torch.cat([RAMP, RAMP + 10])
    sampled, in_image = point_sample_fine_grained_features(
        [features, features * 2], [1.0, 1.0], [Boxes(boxes[:1]), Boxes(boxes[1:])], points
    )
    assert sampled.shape == (2, 2, 1) and sampled.flatten().tolist() == pytest.approx([2, 4, 13, 26])
    assert in_image.tolist() == [[[1, 1]], [[2, 1]]]


def test_labels_of_points():
    masks = torch.zeros(1, 2, 4)
    masks[0, 0, 1] = 1
    labels = sample_point_labels(
        [Instances((2, 4), gt_masks=BitMasks(masks))], torch.tensor([[[1.5, 0.5], [3.5, 1.5], [2.0, 0.5]]])
    )
    assert labels.tolist() == [[1.0, 0.0, 0.5]]


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
