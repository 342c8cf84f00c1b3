"""Multi-scale deformable attention in plain PyTorch: by grid_sample anywhere, by sparse row sums on the CPU.

On the CPU grid_sample reads one channel at a time. Summing whole rows of channels is several times as fast and needs no
copy of the samples, so there the four corners of every sample become four rows of a weighted `embedding_bag`.
"""
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = Sequence[tuple[int, int]]
CACHED_FLOATS = 2**19  # 2 MiB of float32, what a core's second level cache holds


def ms_deform_attn_torch(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """See `ms_deform_attn`. Half precision is computed in float32, in which locations are finer than a pixel."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    levels = [i for i, (height, width) in enumerate(spatial_shapes) if height * width > 0]
    if len(levels) < len(spatial_shapes):  # what points of a level without cells are, even no numbers, does not count
        spatial_shapes = [spatial_shapes[i] for i in levels]
        sampling_locations, attention_weights = sampling_locations[:, :, :, levels], attention_weights[:, :, :, levels]
    inputs = value.to(dtype), sampling_locations.to(dtype), attention_weights.to(dtype)
    by_rows = value.device.type == "cpu" and value.numel() > 0 and attention_weights.numel() > 0
    if by_rows and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        return _RowSums.apply(*inputs, tuple(spatial_shapes)).to(value.dtype)
    return by_grid_sample(inputs[0], spatial_shapes, *inputs[1:]).to(value.dtype)


def by_grid_sample(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The form for other devices, for tracing and export. Levels are added up one by one, not stacked."""
    n, _, m, d = value.shape
    q, points = sampling_locations.shape[1], sampling_locations.shape[4]
    maps = value.permute(0, 2, 3, 1).split([h * w for h, w in spatial_shapes], dim=3)
    grids = (2 * sampling_locations - 1).permute(0, 2, 3, 1, 4, 5).unbind(2)  # L times (N, M, Q, P, 2)
    weights = attention_weights.permute(0, 2, 3, 1, 4).unbind(2)  # L times (N, M, Q, P)
    total = value.new_zeros((n * m, d, q))
    for (height, width), level, grid, weight in zip(spatial_shapes, maps, grids, weights):
        if height * width == 0:
            continue
        samples = F.grid_sample(
            level.reshape(n * m, d, height, width), grid.reshape(n * m, q, points, 2), align_corners=False
        )  # (N * M, D, Q, P)
        total = total + (samples * weight.reshape(n * m, 1, q, points)).sum(-1)
    if value.shape[1] == 0:
        total = total + value.sum()  # zero, and differentiable as any other result
    return total.view(n, m * d, q).transpose(1, 2).contiguous()


class _RowSums(torch.autograd.Function):
    """Heads of images are laid side by side, H = N * M of them; the samples of a query are its K = L * P points."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, attention: Tensor, shapes: Shapes) -> Tensor:
        ctx.save_for_backward(value, locations, attention)
        ctx.shapes = shapes
        n, q, m = attention.shape[:3]
        table = _padded_rows(value, shapes)
        first, x, y = _corners(locations, shapes)
        weights = _corner_weights(x, y, _by_head(attention).flatten(2))
        out = _bag(_corner_rows(first, table.shape[1], shapes), table, weights)
        return out.view(n, m, q, -1).transpose(1, 2).reshape(n, q, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, attention = ctx.saved_tensors
        n, q, m = attention.shape[:3]
        grad_out = _by_head(grad_out.unflatten(-1, (m, -1)))  # (H, Q, D)
        first, x, y = _corners(locations, ctx.shapes)
        attention = _by_head(attention).flatten(2)
        grad_value = grad_locations = grad_attention = None
        if ctx.needs_input_grad[0]:
            weights = _corner_weights(x, y, attention)
            grad_value = _scatter(grad_out, first, weights, value.shape, ctx.shapes)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            table = _padded_rows(value, ctx.shapes)
            dots = _corner_dots(_corner_rows(first, table.shape[1], ctx.shapes), table, grad_out)
            (top_left, top_right), (bottom_left, bottom_right) = (row.unbind(-1) for row in dots.unbind(-2))
            top, bottom = torch.lerp(top_left, top_right, x), torch.lerp(bottom_left, bottom_right, x)
            across = torch.lerp(top_right - top_left, bottom_right - bottom_left, y)
            sizes = _point_sizes(locations, ctx.shapes)
            per_point = torch.stack((across, bottom - top), dim=-1) * attention[..., None] * sizes
            grad_locations = _from_heads(per_point, locations.shape)
            grad_attention = _from_heads(torch.lerp(top, bottom, y), locations.shape[:-1])
        return grad_value, grad_locations, grad_attention, None


def _by_head(x: Tensor) -> Tensor:
    """(N, Q, M, ...) -> (N * M, Q, ...)"""
    return x.transpose(1, 2).flatten(0, 1)


def _from_heads(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(N * M, Q, ...) -> `shape`, (N, Q, M, ...)."""
    n, q, m = shape[:3]
    return x.reshape(n, m, q, *shape[3:]).transpose(1, 2)


def _levels(shapes: Shapes) -> list[tuple[int, int]]:
    """First row and end of every level in the padded table.

    A map has two empty rows above and below and two empty cells before every row, which end the row before as well:
    wherever a sample lies, its four corners are cells of the table, and empty ones outside the map.
    """
    spans, start = [], 0
    for height, width in shapes:
        spans.append((start, start + (height + 4) * (width + 2)))
        start = spans[-1][1]
    return spans


def _padded_rows(value: Tensor, shapes: Shapes) -> Tensor:
    """(N, S, M, D) -> (N * M, S', D), the padded maps of every head, and two empty cells."""
    n, _, m, d = value.shape
    spans = _levels(shapes)
    table = value.new_zeros((n, m, spans[-1][1] + 2, d))
    levels = value.transpose(1, 2).split([h * w for h, w in shapes], dim=2)
    for (start, end), (height, width), level in zip(spans, shapes, levels):
        block = table[:, :, start:end].unflatten(2, (height + 4, width + 2))
        block[:, :, 2:-2, 2:] = level.unflatten(2, (height, width))
    return table.flatten(0, 1)


def _point_sizes(like: Tensor, shapes: Shapes) -> Tensor:
    """(K, 2): width and height of the map that every point of a query reads."""
    points = like.shape[4]
    return like.new_tensor([(w, h) for h, w in shapes]).repeat_interleave(points, dim=0)


def _corners(locations: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Where the samples lie: the row of their first corner in the head's table, and the way to the next, all (H, Q, K).

    A location that is no number keeps that in x and y, so that what reads it becomes no number either.
    """
    sizes = _point_sizes(locations, shapes)
    position = torch.addcmul(sizes.new_tensor(-0.5), _by_head(locations).flatten(2, 3), sizes)  # (H, Q, K, 2)
    corner = position.floor()
    x, y = (position - corner).unbind(-1)
    corner = torch.minimum(corner.nan_to_num_(nan=-2.0).clamp_(min=-2.0), sizes).to(torch.int32)
    points = locations.shape[4]
    starts = torch.tensor([start + 2 * (w + 2) + 2 for (start, _), (_, w) in zip(_levels(shapes), shapes)])
    strides = torch.tensor([w + 2 for _, w in shapes], dtype=torch.int32)
    first = torch.addcmul(corner[..., 0], corner[..., 1], strides.repeat_interleave(points))
    return first.add_(starts.to(torch.int32).repeat_interleave(points)), x, y


def _corner_weights(x: Tensor, y: Tensor, attention: Tensor) -> Tensor:
    """(H, Q, K) each -> (H, Q, K, 2, 2), the weights of the corners [top, bottom][left, right]."""
    weights = x.new_empty((*x.shape, 2, 2))
    bottom = attention * y
    top = attention - bottom
    for row, weight in enumerate((top, bottom)):
        right = torch.mul(weight, x, out=weights[..., row, 1])
        torch.sub(weight, right, out=weights[..., row, 0])
    return weights


def _corner_rows(first: Tensor, rows_per_head: int, shapes: Shapes) -> Tensor:
    """(H, Q, K) -> (H, Q, K, 2, 2), the rows of the corners in the table of all heads."""
    heads, _, k = first.shape
    strides = torch.tensor([w + 2 for _, w in shapes], dtype=torch.int32).repeat_interleave(k // len(shapes))
    steps = torch.stack((torch.zeros_like(strides), strides), dim=-1)[..., None] + torch.tensor([0, 1], dtype=torch.int32)
    head_starts = torch.arange(heads, dtype=torch.int32)[:, None, None] * rows_per_head
    return (first + head_starts)[..., None, None] + steps


def _bag(rows: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of table rows, (H * Q, D)."""
    return F.embedding_bag(
        rows.flatten(2).flatten(0, 1),
        table.flatten(0, 1),
        per_sample_weights=weights.flatten(2).flatten(0, 1),
        mode="sum",
    )


def _corner_dots(rows: Tensor, table: Tensor, grad_out: Tensor) -> Tensor:
    """The inner product of each corner's row with its query's gradient, (H, Q, K, 2, 2): `_bag`'s gradient of weights."""
    with torch.enable_grad():
        weights = table.new_zeros(rows.shape, requires_grad=True)
        out = _bag(rows, table, weights)
        return torch.autograd.grad(out, weights, grad_out.flatten(0, 1))[0]


def _scatter(grad_out: Tensor, first: Tensor, weights: Tensor, shape: Sequence[int], shapes: Shapes) -> Tensor:
    """The gradient of `value` (N, S, M, D). Each sample adds its four corners to one wide row; then these are overlaid.

    One head and some queries at a time, so that all of it stays in the processor's cache.
    """
    n, s, m, d = shape
    queries, k = first.shape[1:]
    spans = _levels(shapes)
    step = max(1, CACHED_FLOATS // (4 * k * d))
    grad_value = grad_out.new_empty((n, m, s, d))
    for head, out in enumerate(grad_value.flatten(0, 1)):
        wide = grad_out.new_zeros((spans[-1][1], 4 * d))
        for i in range(0, queries, step):
            part = slice(i, i + step)
            parts = weights[head, part].flatten(2)[..., None] * grad_out[head, part, None, None]  # (step, K, 4, D)
            rows = first[head, part].flatten().long()[:, None].expand(-1, 4 * d)
            wide.scatter_add_(0, rows, parts.flatten(2).flatten(0, 1))
        levels = out.split([h * w for h, w in shapes])
        for (start, end), (height, width), level in zip(spans, shapes, levels):
            block = wide[start:end].view(height + 4, width + 2, 4, d)
            level = level.view(height, width, d)
            torch.add(block[2:-2, 2:, 0], block[2:-2, 1:-1, 1], out=level)
            level.add_(block[1:-3, 2:, 2]).add_(block[1:-3, 1:-1, 3])
    return grad_value.transpose(1, 2)
