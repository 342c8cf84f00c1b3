import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes


def test_a_full_mask_fills_its_box():
    masks = torch.ones(2, 28, 28)
    pasted = paste_masks_in_image(masks, torch.tensor([[2.0, 3, 7, 9], [0, 0, 12, 10]]), (10, 12))
    assert pasted.dtype == torch.bool and pasted.shape == (2, 10, 12)
    assert pasted[0].sum() == 30 and pasted[0, 3:9, 2:7].all() and pasted[1].all()


def test_boxes_that_stick_out():
    pasted = paste_masks_in_image(torch.ones(1, 8, 8), Boxes([[-4, -4, 4, 4]]), (6, 6))
    assert pasted[0].sum() == 16 and pasted[0, :4, :4].all()


def test_values_at_pixel_centres():
    mask = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    values = paste_masks_in_image(mask, torch.tensor([[0.0, 0, 4, 4]]), (4, 4), threshold=-1)
    assert values.dtype == torch.uint8 and values[0, 1].tolist() == [0, 63, 191, 191]  # 0 beyond the mask
    assert paste_masks_in_image(mask, torch.tensor([[0.0, 0, 4, 4]]), (4, 4), 0.25)[0, 1].tolist() == [0, 1, 1, 1]


def test_a_box_without_width_covers_nothing():
    assert not paste_masks_in_image(torch.ones(1, 8, 8), torch.tensor([[5.0, 2, 5, 6]]), (8, 8)).any()


def test_nothing():
    assert paste_masks_in_image(torch.zeros(0, 8, 8), torch.zeros(0, 4), (3, 4)).shape == (0, 3, 4)


def test_no_square():
    with pytest.raises(AssertionError):
        paste_masks_in_image(torch.zeros(1, 8, 4), torch.zeros(1, 4), (3, 4))


def test_crop_and_paste_are_inverse():
    yy, xx = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    ellipse = ((xx - 40) / 30) ** 2 + ((yy - 30) / 20) ** 2 < 1
    masks = BitMasks(ellipse[None])
    boxes = masks.get_bounding_boxes()
    pasted = paste_masks_in_image(masks.crop_and_resize(boxes.tensor, 28), boxes, (60, 80))[0]
    assert (pasted & ellipse).sum() / (pasted | ellipse).sum() > 0.96
