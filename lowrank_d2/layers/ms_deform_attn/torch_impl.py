"""Multi-scale deformable attention in plain PyTorch."""
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_torch(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """See `ms_deform_attn`. Levels are added up one by one, which needs a quarter of the memory of stacking them.

    Half precision is computed in float32: PyTorch's grid_sample on the CPU reads wrong cells of large half-precision
    maps, and locations in half precision are coarser than a pixel.
    """
    n, _, m, d = value.shape
    q, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.promote_types(value.dtype, torch.float32)
    maps = value.to(dtype).permute(0, 2, 3, 1).split([h * w for h, w in spatial_shapes], dim=3)
    grids = (2 * sampling_locations.to(dtype) - 1).permute(0, 2, 3, 1, 4, 5).unbind(2)  # L times (N, M, Q, P, 2)
    weights = attention_weights.to(dtype).permute(0, 2, 3, 1, 4).unbind(2)  # L times (N, M, Q, P)
    total = value.new_zeros((n * m, d, q), dtype=dtype)
    for (height, width), level, grid, weight in zip(spatial_shapes, maps, grids, weights):
        if height * width == 0:
            continue
        samples = F.grid_sample(
            level.reshape(n * m, d, height, width), grid.reshape(n * m, q, points, 2), align_corners=False
        )  # (N * M, D, Q, P)
        total = total + (samples * weight.reshape(n * m, 1, q, points)).sum(-1)
    return total.view(n, m * d, q).transpose(1, 2).to(value.dtype).contiguous()
