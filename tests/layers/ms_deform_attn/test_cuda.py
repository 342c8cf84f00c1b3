"""The CUDA kernels on a GPU. Without one their arithmetic is tested in test_cuda_kernels.py."""
import math

import pytest
import torch
from torch.testing import assert_close

from lowrank_d2.layers.ms_deform_attn import backend, ms_deform_attn
from lowrank_d2.layers.ms_deform_attn.torch_impl import by_grid_sample

if not torch.cuda.is_available():
    pytest.skip("no GPU: PyTorch sees no CUDA device", allow_module_level=True)

PYRAMID = ((25, 34), (13, 17), (7, 9), (4, 5))


@pytest.fixture(scope="module", autouse=True)
def kernels():
    chosen = backend.current_on_cuda()
    if chosen.library is None:
        pytest.skip(f"no CUDA library: {chosen.reason}")


def operator(value, shapes, places, weights, reference=None):
    return torch.ops.lowrank_d2.ms_deform_attn(value, [x for pair in shapes for x in pair], places, weights, reference)


def case(shapes=PYRAMID, n=2, q=None, m=8, d=32, p=4, spread=1.2, reference=0, dtype=torch.float64, seed=0):
    """Inputs on the GPU: value, places, weights, and a reference or None; locations are never in 16 bits."""
    g = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in shapes)
    q = cells if q is None else q
    value = torch.rand(n, cells, m, d, generator=g, dtype=torch.float64) * 2 - 1
    weights = torch.rand(n, q, m, len(shapes), p, generator=g, dtype=torch.float64)
    places = (torch.rand(n, q, m, len(shapes), p, 2, generator=g, dtype=torch.float64) - 0.5) * spread
    given = None
    if reference:
        given = torch.rand(n, q, 1, reference, generator=g, dtype=torch.float64) * 0.6 + 0.2
        places, weights = places * 8, weights * 6
    else:
        places = places + 0.5
    wide = torch.promote_types(dtype, torch.float32)
    kinds = dtype, wide, dtype, wide
    return [x if x is None else x.to("cuda", kind) for x, kind in zip((value, places, weights, given), kinds)]


def exactly(inputs, shapes):
    """In float64, by grid_sample."""
    value, places, weights, reference = (x if x is None else x.double() for x in inputs)
    if reference is not None:
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=places.dtype, device=places.device)[:, None]
        rows = reference[:, :, None, :, None]
        scale = 1 / sizes if reference.shape[-1] == 2 else rows[..., 2:] * (0.5 / places.shape[4])
        places = rows[..., :2] + places * scale
        weights = weights.flatten(3).softmax(-1).view_as(weights)
    return by_grid_sample(value, shapes, places, weights)


def gradients(function, inputs, grad_out):
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    out = function([*leaves, inputs[3]])
    return torch.autograd.grad(out, leaves, grad_out.to(out.dtype))


def relative(ours, exact):
    return ((ours.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


SWEEP = {
    "an encoder": {},
    "a decoder": {"q": 300},
    "points of reference": {"reference": 2},
    "boxes of reference": {"reference": 4, "q": 100},
    "8 channels": {"d": 8},
    "64 channels": {"d": 64, "m": 4},
    "256 channels": {"d": 256, "m": 1, "q": 50},
    "one channel": {"d": 1, "m": 3},
    "3 channels": {"d": 3, "q": 70},
    "20 channels": {"d": 20, "m": 2},
    "36 channels": {"d": 36, "m": 2},
    "12 points": {"shapes": ((16, 16), (8, 8), (4, 4))},
    "65 points": {"shapes": ((5, 6),) * 5, "p": 13},
    "one point": {"shapes": ((9, 7),), "p": 1},
    "thin levels": {"shapes": ((1, 40), (30, 1), (1, 1))},
    "an empty level": {"shapes": ((8, 8), (0, 5), (3, 3))},
    "far out": {"spread": 8.0},
    "one image": {"n": 1},
    "five images": {"n": 5, "q": 33},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SWEEP)
def test_it_agrees_with_grid_sample_in_float64(name, dtype):
    shapes = SWEEP[name].get("shapes", PYRAMID)
    inputs = case(**SWEEP[name], dtype=dtype)
    out = operator(inputs[0], shapes, *inputs[1:])
    assert out.dtype == dtype
    limit_of_sums = {torch.float64: 1e-13, torch.float32: 5e-6}.get(dtype, torch.finfo(dtype).eps)
    assert relative(out, exactly(inputs, shapes)) < limit_of_sums
    grad_out = torch.randn(out.shape, device="cuda", dtype=dtype)
    ours = gradients(lambda x: operator(x[0], shapes, *x[1:]), inputs, grad_out)
    exact = gradients(lambda x: exactly(x, shapes), inputs, grad_out)
    # A location beside a border of cells has another derivative when rounding moves it across.
    across_borders = 1e-10 if dtype == torch.float64 else 1e-2
    for grad, wanted, limit in zip(ours, exact, (limit_of_sums, across_borders, limit_of_sums)):
        assert relative(grad, wanted) < limit


@pytest.mark.parametrize("d", [4, 7])
def test_gradcheck(d):
    shapes = ((5, 4), (3, 2))
    value, places, weights, _ = case(shapes=shapes, n=1, q=4, m=2, d=d, p=2, spread=0.9)
    inputs = [x.requires_grad_() for x in (value, places, weights)]

    def function(value, places, weights):
        return operator(value, shapes, places, weights)

    assert torch.autograd.gradcheck(function, inputs, nondet_tol=1e-12)


def test_opcheck():
    inputs = case(q=20, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs[:3]]
    flat = [x for pair in PYRAMID for x in pair]
    torch.library.opcheck(torch.ops.lowrank_d2.ms_deform_attn.default, (leaves[0], flat, *leaves[1:], None))


@pytest.mark.parametrize("reference", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_mode_gives_the_same_bits_every_time(dtype, reference):
    inputs = case(dtype=dtype, reference=reference)
    grad_out = torch.randn(2, inputs[2].shape[1], 256, device="cuda", dtype=dtype)

    def run():
        return gradients(lambda x: operator(x[0], PYRAMID, *x[1:]), inputs, grad_out)

    usual = run()
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [run() for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other))
    for a, b in zip(first, usual):
        assert relative(a, b.double()) < 2 * torch.finfo(dtype).eps


def test_the_forward_pass_and_the_gradients_of_points_never_vary():
    inputs = case(dtype=torch.float32)
    grad_out = torch.randn(2, inputs[2].shape[1], 256, device="cuda")
    runs = [gradients(lambda x: operator(x[0], PYRAMID, *x[1:]), inputs, grad_out) for _ in range(3)]
    assert all(a.equal(b) for run in runs[1:] for a, b in zip(runs[0][1:], run[1:]))
    assert operator(inputs[0], PYRAMID, *inputs[1:]).equal(operator(inputs[0], PYRAMID, *inputs[1:]))


def test_it_runs_on_the_current_stream():
    inputs = case(dtype=torch.float32, seed=1)
    expected = operator(inputs[0], PYRAMID, *inputs[1:])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        value = torch.zeros_like(inputs[0])
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would overtake this and read zeros
        value.copy_(inputs[0])
        out = operator(value, PYRAMID, *inputs[1:])
    stream.synchronize()
    assert out.equal(expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_it_runs_on_the_device_of_its_tensors():
    inputs = case(dtype=torch.float32)
    there = [x if x is None else x.to("cuda:1") for x in inputs]
    with torch.cuda.device(0):
        out = operator(there[0], PYRAMID, *there[1:])
        assert out.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    assert out.cpu().equal(operator(inputs[0], PYRAMID, *inputs[1:]).cpu())


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_recorded_graph_computes_with_new_inputs(deterministic):
    held = case(dtype=torch.float32, reference=2)
    leaves = [x.requires_grad_() for x in held[:3]]
    grad_out = torch.randn(2, held[2].shape[1], 256, device="cuda")

    def step():
        out = operator(leaves[0], PYRAMID, leaves[1], leaves[2], held[3])
        return out, torch.autograd.grad(out, leaves, grad_out)

    torch.use_deterministic_algorithms(deterministic)
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, grads = step()
        with torch.no_grad():
            for old, new in zip(leaves, case(dtype=torch.float32, reference=2, seed=5)):
                old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        expected, expected_grads = step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.equal(expected)
    for grad, wanted in zip(grads, expected_grads):
        assert relative(grad, wanted.double()) < 1e-6


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_it_compiles_without_a_break(compiler):
    if compiler == "inductor":
        pytest.importorskip("triton", reason="inductor needs triton for a GPU")

    def function(value, places, weights):
        return ms_deform_attn(value, PYRAMID, places, weights).sin()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    for q in (40, 90):
        value, places, weights, _ = case(q=q, dtype=torch.float32)
        leaves = [x.requires_grad_() for x in (value, places, weights)]
        ours, expected = compiled(*leaves), function(*leaves)
        assert_close(ours, expected)
        grads = [torch.autograd.grad(x.sum(), leaves) for x in (ours, expected)]
        for a, b in zip(*grads):
            assert relative(a, b.double()) < 1e-5


def test_autocast_keeps_locations_in_float32():
    inputs = case(q=50, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = ms_deform_attn(inputs[0], PYRAMID, *inputs[1:3])
    assert out.dtype == torch.bfloat16
    value, places, weights, _ = inputs
    assert_close(out, operator(value.bfloat16(), PYRAMID, places, weights.bfloat16()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_location_that_is_no_number_stays_in_its_own_query_and_head(bad):
    inputs = case(q=7, dtype=torch.float32)
    expected = operator(inputs[0], PYRAMID, *inputs[1:])
    inputs[1][1, 2, 3, 1, 0, 0] = bad
    leaves = [x.requires_grad_() for x in inputs[:3]]
    out = operator(leaves[0], PYRAMID, *leaves[1:])
    hit = torch.zeros(2, 7, 8, 32, dtype=torch.bool, device="cuda")
    hit[1, 2, 3] = True
    assert out.isnan().equal(hit.flatten(2)) and out[~hit.flatten(2)].equal(expected[~hit.flatten(2)])
    out.sum().backward()
    assert leaves[0].grad.isfinite().all() and leaves[1].grad.isnan().any()


def test_strided_and_unaligned_inputs_give_the_same():
    value, places, weights, _ = case(q=30, dtype=torch.float32)
    expected = operator(value, PYRAMID, places, weights)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert operator(strided, PYRAMID, places, weights).equal(expected)
    shifted = [torch.cat((x.flatten()[:1], x.flatten()))[1:].view(x.shape) for x in (value, places, weights)]
    assert_close(operator(shifted[0], PYRAMID, *shifted[1:]), expected)


@pytest.mark.parametrize("changes", [{"n": 0}, {"q": 0}, {"shapes": ((0, 4),), "q": 3}], ids=str)
def test_nothing_to_do_is_allowed(changes):
    shapes = changes.get("shapes", PYRAMID)
    inputs = case(**changes, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs[:3]]
    out = operator(leaves[0], shapes, *leaves[1:])
    assert out.shape == (inputs[0].shape[0], inputs[2].shape[1], 256) and not out.any()
    out.sum().backward()
    assert leaves[0].grad.shape == leaves[0].shape and not leaves[0].grad.any()


def test_what_the_kernels_cannot_do_is_an_error():
    value, places, weights, _ = case(q=3, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="float32, float64, float16 and bfloat16"):
        operator(value.int(), PYRAMID, places, weights)
    with pytest.raises(RuntimeError, match="device of value"):
        operator(value, PYRAMID, places.cpu(), weights)


@pytest.mark.slow
def test_more_elements_than_an_int32_counts():
    n, shapes = 8200, ((32, 32),)
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free GPU memory")
    value = torch.zeros(n, 1024, 8, 32, dtype=torch.bfloat16, device="cuda")
    assert value.numel() > 2**31
    small = case(shapes=shapes, n=1, q=2, dtype=torch.bfloat16)
    value[-1:] = small[0]
    places, weights = (x.expand(n, *x.shape[1:]).contiguous() for x in small[1:3])
    out = operator(value.requires_grad_(), shapes, places, weights)
    assert out[-1:].equal(operator(small[0], shapes, *small[1:]))
    grad_out = torch.zeros_like(out)
    grad_out[-1] = 1
    (grad,) = torch.autograd.grad(out, [value], grad_out)
    alone = small[0].clone().requires_grad_()
    operator(alone, shapes, *small[1:]).sum().backward()
    assert_close(grad[-1:], alone.grad)
    assert not grad[0].any()


def test_the_backward_pass_needs_no_more_memory_than_its_gradients():
    value, places, weights, _ = case(shapes=((100, 134), (50, 67), (25, 34), (13, 17)), dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (value, places, weights)]
    shapes = ((100, 134), (50, 67), (25, 34), (13, 17))
    out = operator(leaves[0], shapes, *leaves[1:])
    grad_out = torch.ones_like(out)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(out, leaves, grad_out)
    needed = sum(x.numel() * x.element_size() for x in leaves)
    assert torch.cuda.max_memory_allocated() - before < needed + 2**20
