"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159, equation 3): the public functions."""
from typing import Sequence

import torch
from torch import Tensor

from lowrank_d2.layers.ms_deform_attn.backend import has_kernel
from lowrank_d2.layers.ms_deform_attn.export import exported
from lowrank_d2.layers.ms_deform_attn.torch_impl import ms_deform_attn_torch


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples of L feature maps, for every query and head.

    The compiled kernels compute in float32, for float64 values in float64, and give the same bits for any number of
    threads. Under torch.export and tracing the result is a graph of PyTorch's own operators; see
    `lowrank_d2.layers.ms_deform_attn.export` for what it may be.

    Args:
        value: (N, S, M, D), the maps flattened row by row and laid end to end; M heads of D channels.
        spatial_shapes: the L sizes (H, W) of the maps; their areas add up to S.
        sampling_locations: (N, Q, M, L, P, 2), (x, y) as fractions of a map: 0 and 1 are the outer edges of its border
            cells. What lies outside reads 0. Keep them in float32 when `value` is in half precision.
        attention_weights: (N, Q, M, L, P); usually a softmax over the last two dimensions.

    Returns:
        (N, Q, M * D) in the dtype of `value`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return exported(value, spatial_shapes, sampling_locations, attention_weights)
    if not has_kernel(value.device.type):
        return ms_deform_attn_torch(value, spatial_shapes, sampling_locations, attention_weights)
    computed = torch.promote_types(value.dtype, torch.float32)
    if attention_weights.dtype != value.dtype:
        attention_weights = attention_weights.to(computed)
    sizes = [size for shape in spatial_shapes for size in shape]
    return torch.ops.lowrank_d2.ms_deform_attn(value, sizes, sampling_locations.to(computed), attention_weights, None)


def _check(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], places: Tensor, weights: Tensor) -> None:
    n, s, m, _ = value.shape
    q, levels, points = weights.shape[1], len(spatial_shapes), weights.shape[-1]
    if sum(h * w for h, w in spatial_shapes) != s:
        raise ValueError(f"value has {s} cells, but the maps {list(spatial_shapes)} have another number of them.")
    if weights.shape != (n, q, m, levels, points) or places.shape != (n, q, m, levels, points, 2):
        raise ValueError(
            f"Locations {tuple(places.shape)}, weights {tuple(weights.shape)} do not fit value "
            f"{tuple(value.shape)} with {levels} maps: (N, Q, M, L, P, 2) and (N, Q, M, L, P) are expected."
        )
