import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection

BOXES = torch.tensor([[0.0, 0, 0, 0], [0, 0, 2, 2], [1, 1, 3, 4]])


class TestBoxMode:
    def test_values(self):
        assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]
        assert BoxMode.XYWH_ABS == 1 and BoxMode(4) is BoxMode.XYWHA_ABS

    def test_lists_pass_through_float32_and_ints_stay(self):
        assert BoxMode.convert([1, 2, 3, 4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == [1, 2, 4, 6]
        box = BoxMode.convert((1.1, 2.0, 3.0, 4.0), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert box == (1.100000023841858, 2.0, 4.099999904632568, 6.0)

    @pytest.mark.parametrize("make", [np.array, torch.tensor])
    def test_rows_keep_type_and_memory(self, make):
        rows = make([[1, 2, 3, 5], [0, 0, 1, 1]])
        converted = BoxMode.convert(rows, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        assert type(converted) is type(rows) and converted.dtype == rows.dtype
        assert converted.tolist() == [[1, 2, 2, 3], [0, 0, 1, 1]] and rows[0, 2] == 3

    def test_same_mode_returns_the_object(self):
        box = [1.1, 2, 3, 4]
        assert BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYXY_ABS) is box

    def test_rotated(self):
        upright = BoxMode.convert(np.array([[50.0, 50, 30, 20, 90]]), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        assert np.allclose(upright, [[40, 35, 60, 65]])
        assert BoxMode.convert([50, 50, 30, 20], BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS) == [65, 60, 30, 20, 0]

    def test_what_is_not_supported(self):
        with pytest.raises(NotImplementedError):
            BoxMode.convert([1, 2, 3, 4], BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)
        with pytest.raises(AssertionError):
            BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
        with pytest.raises(AssertionError):
            BoxMode.convert([0, 0, 1], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


class TestBoxes:
    @pytest.mark.parametrize("nothing", [[], torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 5)])
    def test_empty(self, nothing):
        boxes = Boxes(nothing)
        assert boxes.tensor.shape == (0, 4) and boxes.tensor.dtype == torch.float32 and len(boxes) == 0

    def test_wrong_shapes(self):
        with pytest.raises(AssertionError):
            Boxes(torch.zeros(2, 5))
        with pytest.raises(AssertionError):
            Boxes([1, 2, 3, 4])

    def test_measures(self):
        boxes = Boxes(BOXES)
        assert boxes.area().tolist() == [0, 4, 6]
        assert boxes.get_centers().tolist() == [[0, 0], [1, 1], [2, 2.5]]
        assert boxes.nonempty().tolist() == [False, True, True]
        assert boxes.nonempty(threshold=2).tolist() == [False, False, False]
        assert boxes.inside_box((4, 3)).tolist() == [True, True, False]
        assert boxes.inside_box((4, 3), boundary_threshold=1).tolist() == [True, True, True]

    def test_clip_makes_a_new_tensor(self):
        tensor = torch.tensor([[-1.0, 1, 9, 9]])
        boxes = Boxes(tensor)
        boxes.clip((3, 5))
        assert boxes.tensor.tolist() == [[0, 1, 5, 3]] and tensor[0, 0] == -1
        with pytest.raises(AssertionError):
            Boxes([[0, 0, float("nan"), 1]]).clip((3, 5))

    def test_scale_is_in_place_and_clone_is_not_affected(self):
        tensor = BOXES.clone()
        boxes = Boxes(tensor)
        copy = boxes.clone()
        boxes.scale(2, 3)
        assert tensor[2].tolist() == [2, 3, 6, 12] and copy.tensor[2].tolist() == [1, 1, 3, 4]

    def test_indexing(self):
        boxes = Boxes(BOXES)
        assert boxes[1].tensor.tolist() == [[0, 0, 2, 2]]
        assert boxes[-1].tensor.tolist() == [[1, 1, 3, 4]]
        assert len(boxes[1:]) == 2
        assert boxes[torch.tensor([True, False, True])].tensor[1].tolist() == [1, 1, 3, 4]
        assert boxes[[2, 0]].tensor[0].tolist() == [1, 1, 3, 4]
        with pytest.raises(AssertionError):
            boxes[torch.tensor(1)]

    def test_iteration_and_cat(self):
        boxes = Boxes(BOXES)
        assert [tuple(box.shape) for box in boxes] == [(4,)] * 3
        assert len(Boxes.cat([boxes, boxes[0]])) == 4
        assert Boxes.cat([]).tensor.shape == (0, 4)


def test_overlaps():
    boxes = Boxes(BOXES)
    assert pairwise_intersection(boxes, boxes).tolist() == [[0, 0, 0], [0, 4, 1], [0, 1, 6]]
    expected = torch.tensor([[0, 0, 0], [0, 1, 1 / 9], [0, 1 / 9, 1]])
    assert torch.allclose(pairwise_iou(boxes, boxes), expected)
    assert torch.allclose(pairwise_ioa(boxes[1:2], boxes), torch.tensor([[0, 1, 1 / 6]]))
    assert torch.allclose(matched_pairwise_iou(boxes[1:], boxes[[2, 2]]), torch.tensor([1 / 9, 1]))
    assert pairwise_iou(boxes, Boxes([])).shape == (3, 0)
    with pytest.raises(AssertionError):
        matched_pairwise_iou(boxes, boxes[1:])


def test_point_box_distance():
    distance = pairwise_point_box_distance(torch.tensor([[1.0, 2.0]]), Boxes(BOXES))
    assert distance.tolist() == [[[1, 2, -1, -2], [1, 2, 1, 0], [0, 1, 2, 2]]]
