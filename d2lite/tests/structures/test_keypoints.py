import pytest
import torch
from detectron2.structures import Keypoints, heatmaps_to_keypoints


def test_targets_are_cells_of_a_heatmap():
    keypoints = Keypoints([[[12.0, 21, 2], [20, 30, 1], [15, 25, 0], [21, 25, 2]]])
    cells, valid = keypoints.to_heatmap(torch.tensor([[10.0, 20, 20, 30]]), 5)
    assert valid.tolist() == [[1, 1, 0, 0]]  # the far corner is in, not labelled and outside are out
    assert (cells * valid).tolist() == [[1, 24, 0, 0]]


def test_containers():
    keypoints = Keypoints(torch.rand(3, 17, 3))
    assert len(keypoints[1:]) == 2 and len(keypoints[torch.tensor([True, False, True])]) == 2
    assert len(Keypoints.cat([keypoints, keypoints[:1]])) == 4
    with pytest.raises(AssertionError):
        Keypoints(torch.rand(17, 3))


def test_reading_a_heatmap():
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 2] = 8.0
    x, y, logit, probability = heatmaps_to_keypoints(maps, torch.tensor([[10.0, 20, 14, 24]]))[0, 0].tolist()
    assert (x, y, logit) == (12.5, 21.5, 8.0)
    assert probability == pytest.approx(torch.softmax(maps.flatten(), 0).max().item())


def test_heatmaps_of_fractional_boxes():
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 1, 1] = 1.0
    x, y = heatmaps_to_keypoints(maps, torch.tensor([[0.0, 0, 1.5, 0.2]]))[0, 0, :2].tolist()
    assert (x, y) == (pytest.approx(1.125), pytest.approx(0.5))  # at least one pixel high
