"""Boxes with logarithmic scales, what they cover, and how they choose levels of the pyramid."""
import pytest
import torch

from lors import boxes
from lors.sampling import PointSampling, Pyramid, level_weights, sample_places


def test_scale_and_ratio_are_octaves():
    xyzr = torch.tensor([100.0, 50, 7, 1])
    torch.testing.assert_close(boxes.box_sizes(xyzr), torch.tensor([90.50967, 181.01934]))
    torch.testing.assert_close(boxes.to_corners(xyzr), torch.tensor([54.74517, -40.50967, 145.25483, 140.50967]))
    there_and_back = boxes.from_boxes(torch.tensor([[3.0, 4, 90.50967, 181.01934], [0, 0, 12, 5]]))
    torch.testing.assert_close(boxes.box_sizes(there_and_back)[1], torch.tensor([12.0, 5]))
    torch.testing.assert_close(there_and_back[0, 2:], torch.tensor([7.0, 1]))


def test_boxes_move_by_their_own_scale():
    moved = boxes.refine(torch.tensor([10.0, 20, 3, -1]), torch.tensor([0.5, -1, 0.25, 2]))
    assert moved.tolist() == [14, 12, 3.25, 1]


def test_what_covers_a_box():
    # The first covers a quarter of the second and all of the third; the fourth has no area.
    corners = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 20, 20], [2, 2, 6, 6], [5, 5, 5, 5]]])
    covered = boxes.log_covered(corners).exp()[0]
    expected = torch.tensor([[1, 1, 0.16, 0], [0.25, 1, 0.04, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(covered, expected + 1e-7, rtol=1e-4, atol=1e-6)


def test_levels_are_weighted_by_octaves():
    strides = (4, 8, 16, 32)
    expected = torch.tensor([0.0576, 0.2583, 0.4258, 0.2583])
    torch.testing.assert_close(level_weights(torch.tensor(4.0), strides), expected, rtol=0, atol=1e-4)
    assert level_weights(torch.tensor(6.0), strides)[3] == pytest.approx(0.81, abs=0.005)  # a box of 128 at the start


def test_places_are_fractions_of_the_box():
    places = sample_places(torch.tensor([[[100.0, 50, 7, 1]]]), torch.tensor([[[[[0.5, -0.5, -1], [0, 0, 2]]]]]))
    expected = torch.tensor([[145.25483, -40.50967, 6], [100, 50, 9]])
    torch.testing.assert_close(places[0, 0, 0], expected)


def test_samples_are_interpolated_at_cell_centres_and_zero_outside():
    # A ramp of x over a map of stride 8, padded to 64 x 32 pixels: cell i has its centre at 8 i + 4 pixels.
    ramp = torch.arange(8.0).expand(1, 4, 4, 8) * torch.arange(1, 5.0).view(4, 1, 1)
    pyramid = Pyramid.of([ramp], [8])
    sampling = PointSampling(embed_dim=4, groups=2, points=3)
    dx = torch.tensor([-0.25, 0.25, 3.0])
    with torch.no_grad():
        sampling.offsets.bias.copy_(torch.stack((dx, torch.zeros(3), torch.zeros(3)), dim=-1).repeat(2, 1).flatten())
        samples = sampling(torch.zeros(1, 1, 4), torch.tensor([[[32.0, 16, 4, 0]]]), pyramid)
    x = torch.tensor([28 / 8 - 0.5, 36 / 8 - 0.5, 0])  # the box is 16 wide; the third point lies right of the map
    expected = x[:, None, None] * torch.tensor([[1.0, 2], [3, 4]])
    torch.testing.assert_close(samples[0, 0], expected)
