import detectron2
import pytest
import torch
from detectron2.layers import ROIAlign

RAMP = torch.arange(25.0).view(1, 1, 5, 5)


def test_aligned_and_not():
    box = torch.tensor([[0.0, 1, 1, 3, 3]])
    aligned = ROIAlign((4, 4), 1.0, 0, aligned=True)(RAMP, box)[0, 0]
    shifted = ROIAlign((4, 4), 1.0, 0, aligned=False)(RAMP, box)[0, 0]
    assert torch.allclose(aligned[0], torch.tensor([4.5, 5.0, 5.5, 6.0])) and aligned[3, 3] == 13.5
    assert torch.allclose(shifted - aligned, torch.full((4, 4), 3.0))  # half a pixel down and right


def test_scale_and_batch_index():
    images = torch.stack([RAMP[0], RAMP[0] + 100])
    rois = torch.tensor([[1.0, 2, 2, 6, 6], [0, 2, 2, 6, 6]])
    out = ROIAlign(1, 0.5, 2)(images, rois).flatten()
    assert out.tolist() == [109.0, 9.0]


def test_adaptive_sampling_averages_all_pixels():
    image = torch.rand(1, 2, 8, 8)
    out = ROIAlign(2, 1.0, 0)(image, torch.tensor([[0.0, 0, 0, 8, 8]]))
    assert torch.allclose(out, torch.nn.functional.avg_pool2d(image, 4), atol=1e-6)

# Where torchvision's compiled operators do not load, its Python version stands in; it samples outside of the image.
compiled_or_lite = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", "full") != "lite"
    and not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::_roi_align_backward", "CPU"),
    reason="torchvision's compiled operators do not load",
)


@compiled_or_lite
def test_outside_and_degenerate_regions_are_zero():
    rois = torch.tensor([[0.0, 10, 10, 14, 14], [0, 3, 4, 5, 4], [0, 4, 4, 1, 1]])
    assert ROIAlign(3, 1.0, 0)(RAMP + 1, rois).abs().sum() == 0


@compiled_or_lite
def test_a_border_pixel_counts_half_a_pixel_beyond():
    ones = torch.ones(1, 1, 4, 4)
    out = ROIAlign(1, 1.0, 1)(ones, torch.tensor([[0.0, -1, 0, 0, 1], [0, -3, 0, -1, 1]]))
    assert out.flatten().tolist() == [1.0, 0.0]  # sampled at -0.5 - 0.5 = -1, and at -2.5


@compiled_or_lite
def test_gradient_reaches_the_sampled_pixels():
    image = RAMP.clone().requires_grad_()
    ROIAlign(1, 1.0, 1)(image, torch.tensor([[0.0, 1, 1, 3, 3]])).sum().backward()
    expected = torch.zeros(5, 5)
    expected[1:3, 1:3] = 0.25
    assert torch.allclose(image.grad[0, 0], expected)


def test_empty_and_half():
    assert ROIAlign((7, 6), 1.0, 0)(torch.zeros(0, 3, 4, 4), torch.zeros(0, 5)).shape == (0, 3, 7, 6)
    assert ROIAlign(2, 1.0, 2)(RAMP.half(), torch.tensor([[0.0, 0, 0, 2, 2]])).dtype == torch.float16
    with pytest.raises(AssertionError):
        ROIAlign(2, 1.0, 2)(RAMP, torch.zeros(1, 4))


def test_many_regions_of_one_image():
    rois = torch.cat([torch.zeros(150, 1), torch.tensor([[1.0, 1, 3, 3]]).expand(150, 4)], dim=1)
    out = ROIAlign(1, 1.0, 1)(RAMP, rois)
    assert out.shape == (150, 1, 1, 1) and torch.allclose(out, torch.tensor(9.0))
