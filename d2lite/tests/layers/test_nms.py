import pytest
import torch
from detectron2.layers import batched_nms, nms
from detectron2.structures import Boxes, pairwise_iou

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 5]])
SCORES = torch.tensor([0.5, 0.9, 0.1, 0.7])


def test_greedy_from_the_best():
    assert nms(BOXES, SCORES, 0.5).tolist() == [1, 3, 2]  # IoU of 0 and 1 is 9 / 11, of 3 and 1 is 45 / 105
    assert nms(BOXES, SCORES, 0.4).tolist() == [1, 2]
    assert nms(BOXES, SCORES, 0.9).tolist() == [1, 3, 0, 2]


def test_an_overlap_equal_to_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])
    assert nms(boxes, torch.tensor([0.2, 0.1]), 0.5).tolist() == [0, 1]


def test_classes_do_not_suppress_each_other():
    classes = torch.tensor([0, 1, 0, 0])
    assert batched_nms(BOXES, SCORES, classes, 0.45).tolist() == [1, 3, 2]
    assert batched_nms(BOXES, SCORES, torch.zeros(4, dtype=torch.int64), 0.4).tolist() == [1, 2]


def test_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), empty, 0.5).tolist() == []


@pytest.mark.parametrize("threshold", [0.2, 0.7])
def test_survivors_neither_overlap_nor_are_missing(threshold):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(200, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(200, generator=generator)
    kept = nms(boxes, scores, threshold)
    assert (scores[kept].diff() <= 0).all()
    overlap = pairwise_iou(Boxes(boxes), Boxes(boxes[kept]))
    assert (overlap[kept].fill_diagonal_(0) <= threshold).all()
    dropped = torch.ones(200, dtype=torch.bool)
    dropped[kept] = False
    better = scores[kept] > scores[:, None]
    assert ((overlap > threshold) & better)[dropped].any(dim=1).all()
