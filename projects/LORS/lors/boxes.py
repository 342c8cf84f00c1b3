"""Boxes as AdaMixer's queries carry them: centre, logarithmic scale and aspect ratio, (x, y, z, r).

x and y are pixels of the resized image, z = log2 sqrt(width * height), r = log2(height / width).
"""
import torch
from torch import Tensor

from lowrank_d2.layers.position_encoding import sine_features

IMAGE_SPAN = 1000.0  # pixels that one unit of the position code stands for


def from_boxes(boxes: Tensor) -> Tensor:
    """cxcywh in pixels (..., 4) -> xyzr."""
    center, size = boxes.split(2, dim=-1)
    width, height = size.unbind(-1)
    scale = (width * height).sqrt().log2()
    return torch.cat((center, torch.stack((scale, (height / width).log2()), dim=-1)), dim=-1)


def box_sizes(xyzr: Tensor) -> Tensor:
    """(..., 4) -> widths and heights in pixels (..., 2)."""
    scale, half_ratio = 2 ** xyzr[..., 2], xyzr[..., 3] / 2
    return torch.stack((scale * 2**-half_ratio, scale * 2**half_ratio), dim=-1)


def to_corners(xyzr: Tensor) -> Tensor:
    """(..., 4) -> left, top, right, bottom in pixels (..., 4)."""
    center, half = xyzr[..., :2], box_sizes(xyzr) / 2
    return torch.cat((center - half, center + half), dim=-1)


def refine(xyzr: Tensor, change: Tensor) -> Tensor:
    """Moves the centres by multiples of the scale 2^z, and adds to z and r; both (..., 4)."""
    center = xyzr[..., :2] + change[..., :2] * 2 ** xyzr[..., 2:3]
    return torch.cat((center, xyzr[..., 2:] + change[..., 2:]), dim=-1)


def encode(xyzr: Tensor, dim: int) -> Tensor:
    """The position code (..., dim) of xyzr (..., 4): a quarter of the sines and cosines for each number."""
    units = xyzr.new_tensor([IMAGE_SPAN, IMAGE_SPAN, 1, 1])
    return sine_features(xyzr / units, dim // 4).flatten(-2)


def log_covered(boxes: Tensor) -> Tensor:
    """log of the share of each box (row) that each other one (column) covers: corners (N, Q, 4) -> (N, Q, Q)."""
    low, high = boxes.split(2, dim=-1)
    shared_low = torch.maximum(low[:, :, None], low[:, None])
    shared_high = torch.minimum(high[:, :, None], high[:, None])
    area = (high - low).prod(-1).clamp(min=1e-6)
    shared = (shared_high - shared_low).clamp(min=0).prod(-1)
    return (shared / area[:, :, None] + 1e-7).log()
