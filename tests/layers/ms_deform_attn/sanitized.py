"""Run by test_slow.py in a process of its own: the kernels of the library argv[1] on sizes with odd ends."""
import ctypes
import importlib.util
import itertools
import sys
from pathlib import Path

import torch

from lowrank_d2.layers.ms_deform_attn import ops  # noqa: F401  (defines what the library implements)

spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("conftest.py"))
cases = sys.modules["cases"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)

# Memory is watched: what lies beyond a tensor is poisoned.
beyond = torch.empty(10)
assert ctypes.CDLL(None).__asan_address_is_poisoned(ctypes.c_void_p(beyond.data_ptr() + 40))

torch.ops.load_library(sys.argv[1])
library = ctypes.CDLL(sys.argv[1])
SHAPES = (((6, 5), (3, 4)), ((1, 1),), ((1, 9), (9, 1), (0, 3), (2, 2)))
done = 0
for name in (b"avx512", b"avx2", b"baseline"):
    if not library.lowrank_d2_use_instruction_set(name):
        continue
    for shapes, q, d, p, dtype in itertools.product(SHAPES, (1, 40), (1, 16, 20, 64), (1, 4, 7), (torch.float32, torch.float64)):
        form = ("locations", "points", "boxes")[done % 3]
        case = cases._case(shapes, n=2, q=q, m=2, d=d, p=p, form=form, per_level=done % 2 == 0, dtype=dtype)
        case.places[0, 0] = (float("nan"), float("inf"), 1e30)[done % 3]
        case = case.with_gradients()
        out = case.compiled()
        case.gradients(out, torch.ones_like(out))
        done += 1
    for height, width, count in itertools.product((1, 7), (1, 20), (1, 63, 129)):
        masks, points = torch.randn(3, height, width), 1.4 * torch.rand(3, count, 2) - 0.2
        points[0, 0], points[1, 0] = float("nan"), float("-inf")
        torch.ops.lowrank_d2.masks_at_points(masks, points, None)
        torch.ops.lowrank_d2.masks_at_points(masks > 0, points, torch.tensor([2, 0, 0]))
        torch.ops.lowrank_d2.masks_at_points_backward(torch.randn(3, count), points, height, width)
        torch.ops.lowrank_d2.least_certain_points(masks, points, (count + 1) // 2)
        torch.ops.lowrank_d2.uniform_numbers(done, count)
print("calls", done)
