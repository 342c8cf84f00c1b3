"""ROIAlign (Mask R-CNN, arXiv:1703.06870) without compiled operators.

Bilinear interpolation, averaging over a grid and cutting off at the image's border all treat x and y separately. So a
region's output is ``A_y @ features @ A_x^T`` with two small matrices that hold the weights of rows and of columns.
"""
import torch
from torch import nn
from torch.nn.modules.utils import _pair

_CHUNK = 64  # regions at a time; bounds the (chunk, C, height, W) intermediate result


def roi_align(
    input: torch.Tensor, boxes: torch.Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0,
    sampling_ratio: int = -1, aligned: bool = False,
) -> torch.Tensor:
    """Average bilinear samples in the cells of a grid laid over each region; differentiable in ``input``.

    Args:
        input: (N, C, H, W).
        boxes: (R, 5) index into the batch, x0 y0 x1 y1, which `spatial_scale` brings to the pixels of ``input``.
        output_size: (height, width) of the grid; the result is (R, C, height, width).
        sampling_ratio: samples a cell and direction; 0 or less takes as many as the cell is pixels long.
        aligned: whether pixel i has its centre at i + 0.5, as it should; without it, regions are shifted by half a
            pixel and at least one pixel large.
    """
    (height, width), (rows, columns) = input.shape[-2:], _pair(output_size)
    boxes = boxes.detach().float()
    low = boxes[:, 1:3] * spatial_scale
    size = boxes[:, 3:5] * spatial_scale - low
    if aligned:
        low = low - 0.5
    else:
        size = size.clamp(min=1.0)
    weights_y = _axis_weights(low[:, 1], size[:, 1], rows, height, sampling_ratio).to(input.dtype)
    weights_x = _axis_weights(low[:, 0], size[:, 0], columns, width, sampling_ratio).to(input.dtype)

    output = input.new_zeros(len(boxes), input.shape[1], rows, columns)
    batch_index = boxes[:, 0].long()
    for image in batch_index.unique():
        for regions in (batch_index == image).nonzero().squeeze(1).split(_CHUNK):
            strips = torch.einsum("rph,chw->rcpw", weights_y[regions], input[image])
            output = output.index_put((regions,), torch.einsum("rcpw,rqw->rcpq", strips, weights_x[regions]))
    return output


def _axis_weights(low: torch.Tensor, size: torch.Tensor, cells: int, length: int, sampling_ratio: int) -> torch.Tensor:
    """What each of ``length`` pixels contributes to each cell of (R,) regions along one axis, (R, cells, length)."""
    cell_size = size / cells
    samples = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else cell_size.ceil().clamp(min=0)
    most = max(int(samples.max()), 1) if len(samples) else 1

    step = torch.arange(most, device=low.device)
    offset = (step + 0.5) / samples.clamp(min=1)[:, None]
    cell = torch.arange(cells, device=low.device)
    position = low[:, None, None] + (cell[:, None] + offset[:, None]) * cell_size[:, None, None]
    used = (step < samples[:, None])[:, None] & (position >= -1) & (position <= length)

    position = position.clamp(0, length - 1)
    before = position.long()
    share = position - before
    scale = used / samples.clamp(min=1)[:, None, None]
    after = (before + 1).clamp(max=length - 1)
    weights = low.new_zeros(len(low), cells, length)
    weights.scatter_add_(2, before, (1 - share) * scale)
    weights.scatter_add_(2, after, share * scale)
    return weights


class ROIAlign(nn.Module):
    """:func:`roi_align` as a module, aligned by default."""

    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=True):
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input, rois):
        assert rois.dim() == 2 and rois.shape[1] == 5, f"rois are (R, 5), the image's index first, not {rois.shape}."
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def __repr__(self):
        names = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in names)})"
