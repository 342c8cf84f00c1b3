import pytest
import torch
from detectron2.structures import ImageList

IMAGES = [torch.ones(3, 5, 7), torch.ones(3, 6, 4)]


@pytest.mark.parametrize(
    "divisibility, constraints, size",
    [
        (0, None, (6, 7)),
        (1, None, (6, 7)),
        (4, None, (8, 8)),
        (0, {"square_size": 9}, (9, 9)),
        (4, {"square_size": 9}, (12, 12)),
        (4, {"square_size": 0}, (8, 8)),
        (4, {"size_divisibility": 5}, (10, 10)),
    ],
)
def test_padded_size(divisibility, constraints, size):
    images = ImageList.from_tensors(IMAGES, divisibility, padding_constraints=constraints)
    assert images.tensor.shape == (2, 3, *size)
    assert images.image_sizes == [(5, 7), (6, 4)] and len(images) == 2
    assert images.tensor.sum() == 3 * (5 * 7 + 6 * 4)


def test_padding_is_right_and_bottom():
    images = ImageList.from_tensors(IMAGES, pad_value=2.0)
    assert (images.tensor[0, :, 5:] == 2).all() and (images.tensor[0, :, :5] == 1).all()
    assert (images.tensor[1, :, :, 4:] == 2).all()


def test_index_is_a_view_without_padding():
    images = ImageList.from_tensors(IMAGES)
    assert images[1].shape == (3, 6, 4)
    images[1].zero_()
    assert images.tensor[1].sum() == 0


def test_square_smaller_than_a_single_image_crops():
    assert ImageList.from_tensors(IMAGES[:1], padding_constraints={"square_size": 4}).tensor.shape == (1, 3, 4, 4)


def test_other_shapes_and_types():
    grey = ImageList.from_tensors((torch.ones(4, 5, dtype=torch.uint8), torch.ones(6, 5, dtype=torch.uint8)))
    assert grey.tensor.shape == (2, 6, 5) and grey.tensor.dtype == torch.uint8
    assert grey.to(torch.float64).tensor.dtype == torch.float64


@pytest.mark.parametrize("images", [[], [torch.ones(3, 4, 4), torch.ones(1, 4, 4)], torch.ones(2, 3, 4, 4)])
def test_what_does_not_fit(images):
    with pytest.raises(AssertionError):
        ImageList.from_tensors(images)
