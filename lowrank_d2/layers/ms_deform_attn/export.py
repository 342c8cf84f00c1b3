"""What the operator becomes in an exported model: a graph of operators that other runtimes know.

`grid_sample`, the default, is ONNX's GridSample. TensorRT computes it wrongly inside deformable attention without a
word (https://github.com/NVIDIA/TensorRT/issues/4813) and has none before 8.5: for it there are `gather`, which needs no
more than ONNX's Gather, and `tensorrt`, one node for TensorRT's own plugin.

    with export_form("gather"):
        torch.onnx.export(model, example, "model.onnx", dynamo=True, dynamic_shapes=...)

Where sizes shall vary, give the operator sizes taken from the shapes of the maps, and an example of two images: a size
of 1 is taken for a constant.
"""
import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.ms_deform_attn.torch_impl import by_grid_sample

Shapes = Sequence[tuple[int, int]]
PLUGIN = "trt.plugins::MultiscaleDeformableAttnPlugin_TRT"


def by_gather(value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """See `ms_deform_attn`. Cells are gathered by their number; a cell of zeros stands for all that lie outside."""
    n, _, m, d = value.shape
    q, points = sampling_locations.shape[1], sampling_locations.shape[4]
    # L times (N * M, H * W, D), (N * M, Q, P, 2) and (N * M, Q, P)
    levels = value.transpose(1, 2).flatten(0, 1).split([h * w for h, w in spatial_shapes], dim=1)
    places = sampling_locations.permute(3, 0, 2, 1, 4, 5).flatten(1, 2).unbind(0)
    weights = attention_weights.permute(3, 0, 2, 1, 4).flatten(1, 2).unbind(0)
    total = value.new_zeros((n * m, q, d))
    for shape, level, place, weight in zip(spatial_shapes, levels, places, weights):
        if level.shape[1] == 0:
            continue
        cells = torch.cat((level.new_zeros((1, d)), level.flatten(0, 1)))
        for number, share in _corners(shape, place):
            corner = cells.index_select(0, number.flatten()).view(n * m, q, points, d)
            total = total + (corner * (weight * share)[..., None]).sum(2)
    return total.view(n, m, q, d).transpose(1, 2).reshape(n, q, m * d)


def _corners(shape: tuple[int, int], place: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of one level of all heads, the cells around `place` (H', Q, P, 2): numbers from 1, 0 outside, and shares."""
    height, width = shape
    u, v = place[..., 0] * width - 0.5, place[..., 1] * height - 0.5
    left, top = u.floor(), v.floor()
    first_cell = torch.arange(place.shape[0], device=place.device)[:, None, None] * (height * width) + 1
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, line = (left + right).long(), (top + below).long()
        inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
        share = (u - left if right else 1 - u + left) * (v - top if below else 1 - v + top)
        yield torch.where(inside, first_cell + line * width + column, 0), share


def by_tensorrt_plugin(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """See `ms_deform_attn`. One node that TensorRT finds by its name; it has no numbers before that."""
    n, _, m, d = value.shape
    q = sampling_locations.shape[1]
    starts = [0]
    for height, width in spatial_shapes:
        starts.append(starts[-1] + height * width)
    # One flat list of whole numbers each: sizes in other lists, or as floats, become constants of the exported model.
    sizes = torch.tensor([size for shape in spatial_shapes for size in shape], dtype=torch.int32, device=value.device)
    first_cells = torch.tensor(starts[:-1], dtype=torch.int32, device=value.device)
    inputs = value, sizes.view(-1, 2), first_cells, sampling_locations, attention_weights
    out = torch.onnx.ops.symbolic(PLUGIN, inputs, dtype=value.dtype, shape=(n, q, m, d))
    return out.flatten(2)


_FORMS = {"grid_sample": by_grid_sample, "gather": by_gather, "tensorrt": by_tensorrt_plugin}
FORMS = tuple(_FORMS)
_chosen = "grid_sample"


@contextlib.contextmanager
def export_form(name: str) -> Iterator[None]:
    """Exports inside the block contain the operator in the form `name`, one of FORMS.

    Raises:
        ConfigError: there is no such form.
    """
    global _chosen
    if name not in _FORMS:
        raise ConfigError(f"There is no export form {name!r} of ms_deform_attn. Take one of {', '.join(FORMS)}.")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def exported(value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """`ms_deform_attn` while a model is exported: in the chosen form, in float32 (or float64)."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    inputs = value.to(dtype), spatial_shapes, sampling_locations.to(dtype), attention_weights.to(dtype)
    return _FORMS[_chosen](*inputs).to(value.dtype)
