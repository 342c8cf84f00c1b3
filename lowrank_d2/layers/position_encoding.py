"""Sine position encodings of feature map cells and of boxes, for any even number of channels."""
import math
from typing import Optional, Sequence

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def sine_features(position: Tensor, dim: int) -> Tensor:
    """`dim` features of each position (an angle): sines and cosines in turn, of falling frequency.

    Args:
        position: (...) in radians at the highest frequency.
        dim: even.

    Returns:
        (..., dim)
    """
    pair = torch.arange(dim, device=position.device) // 2
    angles = position.unsqueeze(-1) / TEMPERATURE ** (2 * pair / dim)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def encode_cells(shape: tuple[int, int], dim: int, *, valid: Optional[Tensor] = None, like: Tensor) -> Tensor:
    """Encodes the cells of a feature map; y takes the first half of the channels, x the second.

    Cells are counted from 1 and divided by their number, as upstream.

    Args:
        shape: (H, W).
        valid: (N, 2), how many rows and columns of each image are not padding; None: all.
        like: a tensor whose device and dtype the result takes.

    Returns:
        (N, H * W, dim), N = 1 without `valid`.
    """
    halves = []
    for axis, size in enumerate(shape):
        count = torch.arange(1, size + 1, device=like.device, dtype=like.dtype)[None]
        last = count[:, -1:] if valid is None else valid[:, axis, None].to(like.dtype)
        halves.append(sine_features(torch.minimum(count, last) / (last + 1e-6) * (2 * math.pi), dim // 2))
    (height, width), (y, x) = shape, halves
    y = y[:, :, None].expand(-1, -1, width, -1)
    x = x[:, None].expand(-1, height, -1, -1)
    return torch.cat((y, x), dim=-1).flatten(1, 2)


def encode_unpadded(padding: Tensor, dim: int) -> Tensor:
    """Encodes the cells of padded maps by their centres, as fractions of what is not padding; y first, then x.

    A row or column without any unpadded cell counts 0 of 0 and gets angles of some millions, as in Deformable DETR.

    Args:
        padding: (N, H, W) bool, True on padding.

    Returns:
        (N, H * W, dim)
    """
    halves = []
    for axis in (1, 2):
        count = (~padding).cumsum(axis, dtype=torch.float32)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        halves.append(sine_features((count - 0.5) / (last + 1e-6) * (2 * math.pi), dim // 2))
    return torch.cat(halves, dim=-1).flatten(1, 2)


def encode_boxes(boxes: Tensor, dim: int) -> Tensor:
    """Encodes boxes cxcywh in [0, 1], `dim` features per coordinate, in the order y, x, w, h.

    Args:
        boxes: (..., 4)

    Returns:
        (..., 4 * dim)
    """
    return sine_features(boxes[..., [1, 0, 2, 3]] * (2 * math.pi), dim).flatten(-2)


def cell_centers(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """The centres (x, y) of all cells of several maps as fractions of their map, rows inside maps: (S, 2)."""
    centers = []
    for height, width in shapes:
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        centers.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1))
    return torch.cat(centers)
