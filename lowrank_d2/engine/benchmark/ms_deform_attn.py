"""Multi-scale deformable attention against the form in which it is published in PyTorch."""
import contextlib
import ctypes
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank_d2.engine.benchmark.measure import best_seconds, in_fresh_process, peak_mb, reset_peak
from lowrank_d2.env import operator
from lowrank_d2.layers.ms_deform_attn import backend, ms_deform_attn

# The encoder of a detector at 800 x 1066: every cell of four levels is a query.
LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
HEADS, CHANNELS, POINTS = 8, 32, 4
THREADS = 2


def reference_case(kind: str = "local", seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One image, float32.

    Args:
        kind: `local`, points as the module is initialised, one cell of noise around them; or `uniform`, anywhere.

    Returns:
        value (1, S, 8, 32), locations (1, S, 8, 4, 4, 2), weights (1, S, 8, 4, 4), gradient of the output (1, S, 256).
    """
    generator = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in LEVELS)
    value = torch.randn(1, cells, HEADS, CHANNELS, generator=generator)
    size = (1, cells, HEADS, len(LEVELS), POINTS, 2)
    locations = torch.rand(size, generator=generator) if kind == "uniform" else _near_the_query(size, generator)
    places = len(LEVELS) * POINTS
    weights = torch.randn(1, cells, HEADS, places, generator=generator).softmax(-1).unflatten(-1, (-1, POINTS))
    return value, locations, weights, torch.randn(1, cells, HEADS * CHANNELS, generator=generator)


def _near_the_query(size: Sequence[int], generator: torch.Generator) -> Tensor:
    angle = torch.arange(HEADS) * (2 * math.pi / HEADS)
    direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    offsets = direction[:, None, None] * torch.arange(1, POINTS + 1)[:, None]  # (heads, 1, points, 2)
    offsets = offsets + torch.randn(size, generator=generator)
    return _centers()[None, :, None, None, None] + offsets / torch.tensor([(w, h) for h, w in LEVELS])[:, None]


def _centers() -> Tensor:
    """(S, 2): the cells' centers as fractions (x, y), level by level."""
    levels = []
    for h, w in LEVELS:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        levels.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    return torch.cat(levels)


def published_form(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """How Deformable DETR and its descendants write it in PyTorch: sample every level, stack all, weigh, sum."""
    n, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(n * heads, channels, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, align_corners=False))
    flat = weights.transpose(1, 2).reshape(n * heads, 1, queries, len(shapes) * points)
    total = (torch.stack(sampled, dim=-2).flatten(-2) * flat).sum(-1)
    return total.view(n, heads * channels, queries).transpose(1, 2).contiguous()


def run(device: str = "cpu", dtype: str = "float32", rounds: int = 5) -> dict:
    """Measures speed (2 threads on a CPU) and memory.

    The published form always computes in float32: in half precision PyTorch's grid_sample is wrong on a CPU.

    Args:
        dtype: name of the torch dtype of values and weights; locations stay float32.

    Returns:
        forward_ratio, backward_ratio: time of the published form over ours, in the case `local`; forward_ms, backward_ms
        of ours; uniform: these four in the case `uniform`; memory_mb: what forward and backward need above inputs,
        output and gradients; operator: the form in use; device; threads.
    """
    result = in_fresh_process(_times, device, dtype, rounds, "local")
    result["uniform"] = in_fresh_process(_times, device, dtype, rounds, "uniform")
    result["memory_mb"] = in_fresh_process(_memory, device, dtype)
    chosen = backend.current_on_cuda if device.startswith("cuda") else backend.current
    return result | {"operator": operator(chosen), "device": device, "threads": THREADS}


def _times(device: str, dtype: str, rounds: int, kind: str) -> dict:
    torch.set_num_threads(THREADS)
    forms = {"ours": (ms_deform_attn, getattr(torch, dtype)), "published": (published_form, torch.float32)}
    calls = {}
    for name, (function, precision) in forms.items():
        inputs, grad = _inputs(device, precision, kind)

        def forward(function=function, inputs=inputs):
            with torch.no_grad():
                return function(inputs[0], LEVELS, *inputs[1:])

        def prepare_backward(function=function, inputs=inputs, grad=grad):
            output = function(inputs[0], LEVELS, *inputs[1:])
            return lambda: torch.autograd.grad(output, inputs, grad)

        calls[f"forward_{name}"] = lambda forward=forward: forward
        calls[f"backward_{name}"] = prepare_backward
    best = best_seconds(calls, rounds)
    result = {}
    for direction in ("forward", "backward"):
        result[f"{direction}_ms"] = round(1e3 * best[f"{direction}_ours"], 2)
        result[f"{direction}_ratio"] = round(best[f"{direction}_published"] / best[f"{direction}_ours"], 3)
    return result


def _memory(device: str, dtype: str) -> float:
    torch.set_num_threads(THREADS)
    inputs, grad = _inputs(device, getattr(torch, dtype))
    # A tiny call first: what is loaded once, such as sympy by torch.autograd.grad, is not the operator's.
    tiny = [inputs[0], *(x.detach()[:, :1].requires_grad_() for x in inputs[1:])]
    torch.autograd.grad(ms_deform_attn(tiny[0], LEVELS, *tiny[1:]), tiny, grad[:, :1])
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    _return_freed_memory()
    before = torch.cuda.memory_allocated() / 1e6 if on_gpu else reset_peak()
    output = ms_deform_attn(inputs[0], LEVELS, *inputs[1:])
    grads = torch.autograd.grad(output, inputs, grad)
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak_mb()
    results = sum(x.numel() * x.element_size() for x in (output, *grads)) / 1e6
    return round(peak - before - results, 1)


def _return_freed_memory() -> None:
    """To the system, where glibc is in use: what the inputs' making left would hide what the operator takes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _inputs(device: str, dtype: torch.dtype, kind: str = "local") -> tuple[list[Tensor], Tensor]:
    value, locations, weights, grad = (x.to(device) for x in reference_case(kind))
    inputs = [value.to(dtype), locations, weights.to(dtype)]
    return [x.requires_grad_() for x in inputs], grad.to(dtype)
