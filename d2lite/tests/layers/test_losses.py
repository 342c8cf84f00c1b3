import math

import pytest
import torch
from detectron2.layers import ciou_loss, diou_loss

FIRST = torch.tensor([[-1.0, -1, 1, 1], [0, 0, 1, 1]])
SECOND = torch.tensor([[0.0, -1, 1, 1], [1, 1, 2, 2]])


def test_distance():
    # IoU 1/2, centres 1/2 apart, hull's diagonal squared 8; IoU 0, centres sqrt(2) apart, 8
    assert torch.allclose(diou_loss(FIRST, SECOND), torch.tensor([0.5 + 0.25 / 8, 1 + 2 / 8]))
    assert diou_loss(FIRST, SECOND, reduction="mean").item() == pytest.approx((0.53125 + 1.25) / 2)
    assert diou_loss(FIRST, FIRST, reduction="sum").item() == pytest.approx(0, abs=1e-6)
    assert diou_loss(FIRST[:0], SECOND[:0], reduction="mean") == 0


def test_aspect():
    aspect = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
    expected = 0.53125 + aspect**2 / (0.5 + aspect)
    assert ciou_loss(FIRST, SECOND)[0].item() == pytest.approx(expected, abs=1e-5)


def test_boxes_upside_down():
    with pytest.raises(AssertionError):
        diou_loss(FIRST[:, [2, 3, 0, 1]], SECOND)
