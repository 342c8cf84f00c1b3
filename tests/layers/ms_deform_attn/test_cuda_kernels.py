"""The arithmetic of the CUDA kernels, without a GPU: their source, run thread by thread on an emulated one."""
import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import lowrank_d2.layers.ms_deform_attn as package
from lowrank_d2.layers.ms_deform_attn.torch_impl import by_grid_sample

KERNELS = Path(package.__file__).parent / "csrc" / "cuda"
HARNESS = Path(__file__).parent / "emulator" / "kernels.cpp"
WHOLE = ("images", "cells", "heads", "channels", "queries", "levels", "points")
POINTERS = ("value", "places", "weights", "reference", "grad_out", "out", "grad_value", "grad_places", "grad_weights")


class Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in WHOLE),
        ("shapes", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("wide_places", "wide_weights")),
        *((f"reference_{name}", ctypes.c_int64) for name in ("size", "level", "query", "image")),
        *((name, ctypes.c_void_p) for name in (*POINTERS, "attention")),
        *((name, ctypes.c_int64) for name in ("vectors", "reversed")),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulated GPU with")
    path = tmp_path_factory.mktemp("emulator") / "kernels.so"
    flags = ["-std=c++17", "-O1", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    folders = [f"-I{Path(torch.__file__).parent / 'include'}", f"-I{KERNELS}"]
    subprocess.run([compiler, *flags, *folders, str(HARNESS), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.emulate.restype = ctypes.c_char_p
    return library


@pytest.fixture
def emulate(library):
    def run(what, inputs, shapes, grad_out=None, vectors=True, reverse=False, for_value=True, for_points=True):
        """`inputs` are value, places, weights and the reference or None; returns the output or the three gradients."""
        value, places, weights, reference = (x if x is None else x.contiguous() for x in inputs)
        n, s, m, d = value.shape
        q, levels, points = weights.shape[1], *weights.shape[3:]
        wide = torch.promote_types(value.dtype, torch.float32)
        flat = torch.tensor(shapes).flatten()
        call = Call(n, s, m, d, q, levels, points, flat.data_ptr(), places.dtype == wide, weights.dtype == wide)
        call.vectors, call.reversed = vectors, reverse
        if reference is not None:
            rows = reference.shape[2] * reference.shape[3]
            call.reference_size = reference.shape[3]
            call.reference_level = reference.shape[3] if reference.shape[2] > 1 else 0
            call.reference_query, call.reference_image = rows, rows * q if reference.shape[0] > 1 else 0
        grads = [None] * 3
        if for_value:
            grads[0] = torch.zeros(value.shape, dtype=value.dtype if what == "sorted" else wide)
        if for_points:
            grads[1:] = torch.full_like(places, math.nan), torch.full_like(weights, math.nan)
        out = torch.full((n, q, m * d), math.nan, dtype=value.dtype)
        tensors = [value, places, weights, reference, grad_out, out, *grads]
        attention = grads[2]
        if attention is not None and attention.dtype != wide:
            attention = torch.zeros(weights.shape, dtype=wide)
        for name, tensor in zip((*POINTERS, "attention"), (*tensors, attention)):
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        error = library.emulate(what.encode(), str(value.dtype).removeprefix("torch.").encode(), ctypes.byref(call))
        assert error is None, error.decode()
        return out if what == "forward" else grads

    return run


def case(shapes=((9, 11), (5, 4)), n=2, q=None, m=2, d=8, p=4, spread=1.2, reference=0, levels_of_reference=1, seed=0):
    """Inputs in float64, without a reference or with one of points (2) or boxes (4)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    cells = sum(h * w for h, w in shapes)
    q = cells if q is None else q
    value = uniform(n, cells, m, d) * 2 - 1
    weights = uniform(n, q, m, len(shapes), p)
    places = (uniform(n, q, m, len(shapes), p, 2) - 0.5) * spread + 0.5
    if not reference:
        return (value, places, weights, None), shapes
    given = uniform(n, q, levels_of_reference, reference) * 0.6 + 0.2
    return (value, (places - 0.5) * 8, weights * 6, given), shapes


def by_pytorch(inputs, shapes):
    value, places, weights, reference = inputs
    if reference is not None:
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=places.dtype)[:, None]
        rows = reference[:, :, None, :, None]
        scale = 1 / sizes if reference.shape[-1] == 2 else rows[..., 2:] * (0.5 / places.shape[4])
        places = rows[..., :2] + places * scale
        weights = weights.flatten(3).softmax(-1).view_as(weights)
    return by_grid_sample(value, shapes, places, weights)


def gradients_by_pytorch(inputs, shapes, grad_out):
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    return torch.autograd.grad(by_pytorch((*leaves, inputs[3]), shapes), leaves, grad_out)


def grad_for(inputs):
    value, _, weights, _ = inputs
    size = (value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES = {
    "cells ask": {},
    "few queries": {"q": 5, "n": 1},
    "many queries": {"q": 70, "n": 1, "m": 1},
    "32 channels": {"d": 32, "q": 9},
    "256 channels": {"d": 256, "q": 3, "m": 1},
    "odd channels": {"d": 3, "q": 6},
    "one channel": {"d": 1, "q": 6},
    "20 channels": {"d": 20, "q": 6},
    "36 channels": {"d": 36, "q": 6},
    "one point": {"p": 1, "q": 9},
    "three points": {"p": 3, "q": 9},
    "65 points": {"p": 13, "shapes": ((3, 3),) * 5, "q": 4, "n": 1},
    "one level": {"shapes": ((17, 9),), "n": 1, "m": 1},
    "thin levels": {"shapes": ((1, 9), (7, 1), (1, 1))},
    "an empty level": {"shapes": ((4, 4), (0, 3), (2, 5))},
    "far out": {"spread": 6.0, "q": 20},
    "points of reference": {"reference": 2},
    "points of each level": {"reference": 2, "levels_of_reference": 2, "q": 9},
    "boxes": {"reference": 4, "q": 9, "p": 3},
    "boxes of each level": {"reference": 4, "levels_of_reference": 2, "q": 9, "m": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_float64_agrees_with_pytorch(emulate, name):
    inputs, shapes = case(**CASES[name])
    grad_out = grad_for(inputs)
    assert_close(emulate("forward", inputs, shapes), by_pytorch(inputs, shapes))
    expected = gradients_by_pytorch(inputs, shapes, grad_out)
    for ours, theirs in zip(emulate("backward", inputs, shapes, grad_out), expected):
        assert_close(ours, theirs)
    assert_close(emulate("sorted", inputs, shapes, grad_out, for_points=False)[0], expected[0])


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"d": 32, "q": 40}, {"d": 128, "q": 3}, {"reference": 2, "q": 30}, {"d": 24, "q": 9}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_type_of_value_agrees_with_pytorch(emulate, dtype, changes, vectors):
    inputs, shapes = case(**changes)
    value, places, weights, reference = inputs
    grad_out = grad_for(inputs).to(dtype)
    narrow = weights.to(dtype) if reference is None else weights.float()
    inputs = value.to(dtype), places.float(), narrow, None if reference is None else reference.float()
    exact = [x if x is None else x.double() for x in inputs]
    step = torch.finfo(dtype).eps
    out = emulate("forward", inputs, shapes, vectors=vectors)
    assert out.dtype == dtype
    assert_close(out.double(), by_pytorch(exact, shapes), rtol=step, atol=4e-6)
    grads = emulate("backward", inputs, shapes, grad_out, vectors=vectors)
    expected = gradients_by_pytorch(exact, shapes, grad_out.double())
    assert grads[0].dtype == torch.float32
    assert_close(grads[0].double(), expected[0], rtol=1e-5, atol=2e-5)
    assert_close(grads[1].double(), expected[1], rtol=1e-4, atol=2e-3)
    assert_close(grads[2].double(), expected[2], rtol=max(step, 1e-5), atol=1e-4)
    in_order = emulate("sorted", inputs, shapes, grad_out, for_points=False)[0]
    assert_close(in_order.double(), expected[0], rtol=max(step, 1e-5), atol=2e-5)


def test_logits_and_offsets_may_be_in_half_precision(emulate):
    inputs, shapes = case(reference=4, q=12)
    value, places, weights, reference = (x.to(torch.bfloat16) for x in inputs)
    grad_out = grad_for(inputs).bfloat16()
    half = value, places, weights, reference.float()
    exact = [x.double() for x in half]
    assert_close(emulate("forward", half, shapes).double(), by_pytorch(exact, shapes), rtol=8e-3, atol=1e-5)
    expected = gradients_by_pytorch(exact, shapes, grad_out.double())
    for ours, theirs in zip(emulate("backward", half, shapes, grad_out), expected):
        assert_close(ours.double(), theirs, rtol=8e-3, atol=2e-3)


def test_the_order_of_threads_changes_nothing_but_the_order_of_additions(emulate):
    inputs, shapes = case(shapes=((20, 20), (3, 3)), n=1, m=1, d=32, reference=2)
    inputs = [x.float() for x in inputs]
    grad_out = grad_for(inputs).float()
    forth, back = (emulate("backward", inputs, shapes, grad_out, reverse=reverse) for reverse in (False, True))
    assert emulate("forward", inputs, shapes).equal(emulate("forward", inputs, shapes, reverse=True))
    assert_close(forth[0], back[0], rtol=1e-5, atol=1e-5)
    assert forth[1].equal(back[1]) and forth[2].equal(back[2])
    in_order = [emulate("sorted", inputs, shapes, grad_out, reverse=reverse)[0] for reverse in (False, True)]
    assert in_order[0].equal(in_order[1])


def test_a_full_table_of_cells_still_adds_everything(emulate):
    # 256 points that are spread over 10,000 cells have twice as many corners as the table has slots.
    inputs, shapes = case(shapes=((100, 100),), n=1, q=64, m=1, d=8, spread=1.0)
    grad_out = grad_for(inputs)
    grads = emulate("backward", inputs, shapes, grad_out)
    assert (grads[0].abs().sum(-1) > 0).sum() > 900
    assert_close(grads[0], gradients_by_pytorch(inputs, shapes, grad_out)[0])


@pytest.mark.parametrize("for_value, for_points", [(True, False), (False, True)])
def test_only_the_gradients_asked_for_are_computed(emulate, for_value, for_points):
    inputs, shapes = case(q=9, reference=2)
    grad_out = grad_for(inputs)
    grads = emulate("backward", inputs, shapes, grad_out, for_value=for_value, for_points=for_points)
    for ours, theirs in zip(grads, gradients_by_pytorch(inputs, shapes, grad_out)):
        if ours is not None:
            assert_close(ours, theirs)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_location_that_is_no_number_stays_in_its_own_query_and_head(emulate, bad, axis):
    inputs, shapes = case(q=7)
    value, places, weights, _ = (x if x is None else x.float() for x in inputs)
    expected = emulate("forward", (value, places, weights, None), shapes)
    places = places.clone()
    places[1, 2, 0, 1, 0, axis] = bad
    inputs, grad_out = (value, places, weights, None), grad_for(inputs).float()
    out = emulate("forward", inputs, shapes)
    hit = torch.zeros(2, 7, 2, 8, dtype=torch.bool)
    hit[1, 2, 0] = True
    hit = hit.flatten(2)
    assert out.isnan().equal(hit) and out[~hit].equal(expected[~hit])
    grads = emulate("backward", inputs, shapes, grad_out)
    assert grads[0].isfinite().all()
    assert grads[1].isnan().nonzero().tolist() == [[1, 2, 0, 1, 0, 1 - axis]]  # as in the PyTorch form
    assert grads[2].isnan().nonzero().tolist() == [[1, 2, 0, 1, 0]]
    assert emulate("sorted", inputs, shapes, grad_out)[0].isfinite().all()


@pytest.mark.parametrize("name", ["places", "weights"])
def test_no_number_at_an_empty_level_does_not_count(emulate, name):
    inputs, shapes = case(shapes=((3, 4), (0, 5), (2, 5)), q=7)
    broken = {"value": inputs[0], "places": inputs[1].clone(), "weights": inputs[2].clone()}
    broken[name][1, 2, 0, 1] = math.nan
    broken = (*broken.values(), None)
    assert emulate("forward", broken, shapes).equal(emulate("forward", inputs, shapes))
    grad_out = grad_for(inputs)
    for ours, theirs in zip(emulate("backward", broken, shapes, grad_out), emulate("backward", inputs, shapes, grad_out)):
        assert ours.equal(theirs)


def test_a_weight_that_is_no_number_counts_outside_too(emulate):
    inputs, shapes = case(q=3)
    value, places, weights, _ = inputs
    places, weights = torch.full_like(places, 5.0), weights.clone()
    weights[0, 1, 1, 0, 2] = math.nan
    out = emulate("forward", (value, places, weights, None), shapes)
    assert_close(out, by_pytorch((value, places, weights, None), shapes), equal_nan=True)
    assert out.isnan().sum() == 8 and out[0, 1, 8:].isnan().all()


@pytest.mark.parametrize("cell", [-1.0, 0.0, 7.0, 8.0, 1e10, -1e10])
def test_borders_and_beyond(emulate, cell):
    value = torch.rand(1, 64, 1, 8, dtype=torch.float64) + 1
    places = torch.full((1, 2, 1, 1, 4, 2), (cell + 0.5) / 8, dtype=torch.float64)
    inputs = value, places, torch.ones(1, 2, 1, 1, 4, dtype=torch.float64), None
    out = emulate("forward", inputs, ((8, 8),))
    assert_close(out, by_pytorch(inputs, ((8, 8),)))
    assert (out != 0).any() == (cell in (0, 7))
    grads = emulate("backward", inputs, ((8, 8),), grad_for(inputs))
    assert_close(grads[0], gradients_by_pytorch(inputs, ((8, 8),), grad_for(inputs))[0])
    assert abs(cell) < 1e10 or not grads[1].any()


def test_what_lies_outside_is_not_read(emulate):
    inputs, shapes = case(shapes=((1, 2), (1, 2)), n=1, q=1, m=1)
    value, places, weights, _ = inputs
    value = value.clone()
    value[:, [0, 3]] = math.inf
    places[..., 1] = 0.5
    places[:, :, :, 0, :, 0], places[:, :, :, 1, :, 0] = 0.9, 0.1  # beside the infinite cells, and beyond the border
    assert emulate("forward", (value, places, weights, None), shapes).isfinite().all()
