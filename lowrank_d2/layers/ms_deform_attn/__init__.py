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
    threads. Under torch.export and tracing the result is a graph of PyTorch's own operators, in a form that
    `lowrank_d2.layers.ms_deform_attn.export` lets you choose.

    Args:
        value: (N, S, M, D), the maps flattened row by row and laid end to end; M heads of D channels.
        spatial_shapes: the L sizes (H, W) of the maps; their areas add up to S.
        sampling_locations: (N, Q, M, L, P, 2), (x, y) as fractions of a map: 0 and 1 are the outer edges of its border
            cells. What lies outside reads 0, and a map without cells is left out. Keep them in float32 when `value` is in half precision.
        attention_weights: (N, Q, M, L, P); usually a softmax over the last two dimensions.

    Returns:
        (N, Q, M * D) in the dtype of `value`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if _exporting():
        return exported(value, spatial_shapes, sampling_locations, attention_weights)
    if not has_kernel(value.device.type):
        return ms_deform_attn_torch(value, spatial_shapes, sampling_locations, attention_weights)
    computed = torch.promote_types(value.dtype, torch.float32)
    if attention_weights.dtype != value.dtype:
        attention_weights = attention_weights.to(computed)
    sizes = [size for shape in spatial_shapes for size in shape]
    return torch.ops.lowrank_d2.ms_deform_attn(value, sizes, sampling_locations.to(computed), attention_weights, None)


def ms_deform_attn_from_offsets(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`ms_deform_attn` of what an attention block predicts; compiled, it makes no locations and no softmax in memory.

    Args:
        value: (N, S, M, D), as for `ms_deform_attn`.
        spatial_shapes: the L sizes (H, W).
        reference: where queries look, as fractions of a map: points (N or 1, Q, 2) or boxes cxcywh (N or 1, Q, 4), the
            same for all levels, or (N or 1, Q, L, 2 or 4).
        offsets: (N, Q, M, L, P, 2), (x, y) from the reference: in cells of the level with points, in halves of the box
            divided by P with boxes.
        logits: (N, Q, M, L, P), of a softmax over all points of a head, L * P of them.

    Returns:
        (N, Q, M * D) in the dtype of `value`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check(value, spatial_shapes, offsets, logits)
    if reference.dim() == 3:
        reference = reference[:, :, None]
    n, q, _, levels, _ = logits.shape
    images, queries, maps, size = reference.shape
    # Not `in`: for the compiler's symbolic sizes that asks for the same object.
    if (images != 1 and images != n) or queries != q or (maps != 1 and maps != levels) or (size != 2 and size != 4):
        raise ValueError(
            f"The reference {tuple(reference.shape)} does not fit {n} images, {q} queries and {levels} maps: "
            "(N or 1, Q, 2 or 4) or (N or 1, Q, L, 2 or 4) is expected."
        )
    computed = torch.promote_types(value.dtype, torch.float32)
    learns_reference = reference.requires_grad and torch.is_grad_enabled()  # which the compiled form does not
    if learns_reference or _exporting() or not has_kernel(value.device.type):
        locations = _locations(reference.to(computed), offsets.to(computed), spatial_shapes)
        weights = logits.to(computed).flatten(-2).softmax(-1).view_as(logits)
        return ms_deform_attn(value, spatial_shapes, locations, weights)
    sizes = [size for shape in spatial_shapes for size in shape]
    return torch.ops.lowrank_d2.ms_deform_attn(value, sizes, offsets, logits, reference)


def _locations(reference: Tensor, offsets: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(N or 1, Q, L or 1, 2 or 4) and (N, Q, M, L, P, 2) -> (N, Q, M, L, P, 2), fractions of a map."""
    reference = reference[:, :, None, :, None]  # (N or 1, Q, 1, L or 1, 1, 2 or 4)
    if reference.shape[-1] == 2:
        # Level by level: a tensor of the sizes would be a constant of an exported model.
        levels = zip(spatial_shapes, offsets.unbind(3))
        # An empty level's locations do not count, but a division by zero would have a gradient that is no number.
        scaled = [torch.stack((o[..., 0] / (w or 1), o[..., 1] / (h or 1)), dim=-1) for (h, w), o in levels]
        return reference + torch.stack(scaled, dim=3)
    return reference[..., :2] + offsets / offsets.shape[-2] * reference[..., 2:] * 0.5


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


def _exporting() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()
