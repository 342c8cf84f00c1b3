import math

import torch

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, giou, inverse_sigmoid, iou, xyxy_to_cxcywh


def test_formats_are_inverse():
    boxes = torch.tensor([[0.5, 0.25, 1.0, 0.5], [0.2, 0.3, 0.1, 0.2]])
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners[0], torch.tensor([0.0, 0.0, 1.0, 0.5]))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)


def test_giou_of_known_boxes():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    # Overlap 1 of 7 in a hull of 9; the box itself; apart, hull 12 of which 8 is covered.
    expected = torch.tensor([[1 / 7 - 2 / 9, 1.0, -4 / 12]])
    torch.testing.assert_close(giou(a[:, None], b[None]), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(giou(a.expand(3, 4), b), expected[0], atol=2e-6, rtol=0)


def test_giou_of_empty_boxes_is_finite_and_has_a_gradient():
    a = torch.zeros(1, 4, requires_grad=True)
    value = giou(a, torch.zeros(1, 4))
    value.sum().backward()
    assert value.item() == 0 and a.grad.isfinite().all()


def test_inverse_sigmoid_clamps_both_ends():
    x = torch.tensor([0.0, 0.3, 1.0, 1e8])
    y = inverse_sigmoid(x)
    limit = math.log(1e5)
    torch.testing.assert_close(y, torch.tensor([-limit, math.log(0.3 / 0.7), limit, limit]))


def test_iou_has_no_epsilon_and_boxes_without_area_give_zero():
    a = torch.tensor([[0.0, 0.0, 2e-4, 2e-4], [0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[1e-4, 0.0, 3e-4, 2e-4], [0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(iou(a, b), torch.tensor([1 / 3, 0.0]))
