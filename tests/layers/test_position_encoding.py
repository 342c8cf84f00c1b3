import math

import pytest
import torch

from lowrank_d2.layers.position_encoding import cell_centers, encode_boxes, encode_cells, encode_unpadded

LIKE = torch.zeros(())


def feature(position, i, dim):
    angle = position / 10000 ** (2 * (i // 2) / dim)
    return math.sin(angle) if i % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize("dim", [8, 12, 256])
def test_cells_are_counted_from_one_y_before_x(dim):
    encoded = encode_cells((3, 5), dim, like=LIKE).view(3, 5, dim)
    for row, column in ((0, 0), (2, 4), (1, 3)):
        y = (row + 1) / (3 + 1e-6) * 2 * math.pi
        x = (column + 1) / (5 + 1e-6) * 2 * math.pi
        expected = [feature(position, i, dim // 2) for position in (y, x) for i in range(dim // 2)]
        torch.testing.assert_close(encoded[row, column], torch.tensor(expected), atol=2e-6, rtol=0)


def test_valid_cells_are_encoded_as_on_a_map_of_their_own_size():
    valid = torch.tensor([[3, 5], [2, 4]])
    encoded = encode_cells((3, 5), 16, valid=valid, like=LIKE).view(2, 3, 5, 16)
    torch.testing.assert_close(encoded[0], encode_cells((3, 5), 16, like=LIKE).view(3, 5, 16))
    torch.testing.assert_close(encoded[1, :2, :4], encode_cells((2, 4), 16, like=LIKE).view(2, 4, 16))


def test_boxes_are_encoded_in_the_order_y_x_w_h():
    box = torch.tensor([0.1, 0.2, 0.3, 0.4])
    encoded = encode_boxes(box, 6).view(4, 6)
    for row, coordinate in enumerate((0.2, 0.1, 0.3, 0.4)):
        expected = [feature(coordinate * 2 * math.pi, i, 6) for i in range(6)]
        torch.testing.assert_close(encoded[row], torch.tensor(expected))


def test_cell_centers_run_row_by_row_level_by_level():
    centers = cell_centers(((1, 2), (2, 1)), like=LIKE)
    assert centers.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_unpadded_cells_are_encoded_by_their_centres():
    padding = torch.ones(2, 4, 6, dtype=torch.bool)
    padding[0] = False
    padding[1, :2, :3] = False
    encoded = encode_unpadded(padding, 8).unflatten(1, (4, 6))
    turn = 2 * math.pi
    torch.testing.assert_close(encoded[0, 1, 4, 0], torch.tensor(math.sin(turn * 1.5 / 4)), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded[0, 1, 4, 5], torch.tensor(math.cos(turn * 4.5 / 6)), atol=1e-5, rtol=0)
    small = encode_unpadded(torch.zeros(1, 2, 3, dtype=torch.bool), 8).unflatten(1, (2, 3))
    torch.testing.assert_close(encoded[1, :2, :3], small[0])
    torch.testing.assert_close(encoded[1, 3, 2, :4], small[0, 1, 2, :4])  # below, y stays at the last row
