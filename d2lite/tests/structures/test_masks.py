import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, PolygonMasks, ROIMasks, polygons_to_bitmask
from detectron2.structures.masks import polygon_area

SQUARE = [2.0, 1, 6, 1, 6, 5, 2, 5]
TRIANGLE = [0.0, 0, 4, 0, 0, 4]


class TestBitMasks:
    def test_boxes(self):
        masks = torch.zeros(3, 6, 8)
        masks[0, 1:3, 2:7] = 1
        masks[1, 5, 0] = 1
        assert BitMasks(masks).get_bounding_boxes().tensor.tolist() == [[2, 1, 7, 3], [0, 5, 1, 6], [0, 0, 0, 0]]
        assert BitMasks(masks).nonempty().tolist() == [True, True, False]
        assert BitMasks(torch.zeros(0, 6, 8)).get_bounding_boxes().tensor.shape == (0, 4)

    def test_shapes_and_indexing(self):
        masks = BitMasks(np.ones((3, 4, 5), dtype=np.uint8))
        assert masks.tensor.dtype == torch.bool and tuple(masks.image_size) == (4, 5)
        assert masks[0].tensor.shape == (1, 4, 5) and len(masks[1:]) == 2
        assert len(masks[torch.tensor([True, False, True])]) == 2
        assert [tuple(mask.shape) for mask in masks] == [(4, 5)] * 3
        assert len(BitMasks.cat([masks, masks])) == 6
        with pytest.raises(AssertionError):
            BitMasks(torch.ones(4, 5))
        with pytest.raises(AssertionError):
            masks[0, 0]

    def test_from_polygons(self):
        masks = BitMasks.from_polygon_masks([[np.array(SQUARE)], []], 8, 10)
        assert masks.tensor.sum(dim=(1, 2)).tolist() == [16, 0]
        assert masks.tensor[0, 1:5, 2:6].all()
        assert BitMasks.from_polygon_masks(PolygonMasks([[SQUARE]]), 8, 10).tensor.equal(masks.tensor[:1])
        assert BitMasks.from_polygon_masks([], 8, 10).tensor.shape == (0, 8, 10)

    def test_crop_and_resize(self):
        masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        masks[:, 2:6, 2:6] = True
        boxes = torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 8]])
        crops = BitMasks(masks).crop_and_resize(boxes, 4)
        assert crops.dtype == torch.bool and crops[0].all()
        expected = torch.zeros(4, 4, dtype=torch.bool)
        expected[1:3, 2:] = True
        assert crops[1].equal(expected)
        assert BitMasks(masks[:0]).crop_and_resize(boxes[:0], 4).shape == (0, 4, 4)
        with pytest.raises(AssertionError):
            BitMasks(masks).crop_and_resize(boxes[:1], 4)


class TestPolygonMasks:
    @pytest.mark.parametrize(
        "polygons", [[[[0, 0, 1, 1]]], [[[0, 0, 1, 1, 2, 2, 3]]], np.zeros((1, 6)), [np.zeros((1, 6))]]
    )
    def test_wrong_polygons(self, polygons):
        with pytest.raises(ValueError):
            PolygonMasks(polygons)

    def test_measures(self):
        masks = PolygonMasks([[SQUARE, TRIANGLE], [], [torch.tensor(TRIANGLE)]])
        assert masks.area().tolist() == [24, 0, 8]
        assert masks.nonempty().tolist() == [True, False, True]
        assert masks[0].get_bounding_boxes().tensor.tolist() == [[0, 0, 6, 5]]
        assert masks.polygons[2][0].dtype == np.float64
        assert polygon_area(np.array([0, 2, 2, 0]), np.array([0, 0, 3, 3])) == 6

    @pytest.mark.parametrize(
        "index, areas",
        [
            (1, [8]),
            (slice(1, 3), [8, 4]),
            ([2, 0], [4, 16]),
            (torch.tensor([2, 1]), [4, 8]),
            (torch.tensor([True, False, True]), [16, 4]),
        ],
    )
    def test_indexing(self, index, areas):
        half = [0.0, 0, 2, 0, 2, 2, 0, 2]
        masks = PolygonMasks([[SQUARE], [TRIANGLE], [half]])
        assert masks[index].area().tolist() == areas
        assert len(PolygonMasks.cat([masks, masks[index]])) == 3 + len(areas)

    def test_crop_and_resize(self):
        masks = PolygonMasks([[SQUARE], [SQUARE]])
        crops = masks.crop_and_resize(torch.tensor([[2.0, 1, 6, 5], [2, 1, 10, 5]]), 8)
        assert crops.dtype == torch.bool and crops[0].all()
        assert crops[1, :, :4].all() and not crops[1, :, 4:].any()
        assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 8).shape == (0, 8, 8)


def test_polygons_to_bitmask():
    mask = polygons_to_bitmask([np.array(SQUARE), np.array([0.0, 0, 2, 0, 2, 2, 0, 2])], 6, 7)
    assert mask.dtype == bool and mask.shape == (6, 7) and mask.sum() == 20
    assert not polygons_to_bitmask([], 6, 7).any()


def test_roi_masks():
    masks = ROIMasks(torch.ones(2, 4, 4))
    pasted = masks.to_bitmasks(Boxes([[1, 1, 3, 3], [0, 0, 4, 2]]), 5, 6)
    assert pasted.tensor.shape == (2, 5, 6) and pasted.tensor.sum(dim=(1, 2)).tolist() == [4, 8]
    assert len(masks[:1]) == 1
    with pytest.raises(ValueError):
        masks[0]
    with pytest.raises(ValueError):
        ROIMasks(torch.ones(4, 4))
