"""The compiled CPU kernels against the PyTorch form, in float64 where one rounding cannot hide the other's mistake."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

FORMS = ("locations", "points", "boxes")


def leave_garbage():
    """Fills memory that the next call will be given: nothing may be read there before it is written."""
    for size in (2**10, 2**12, 2**14, 2**16):
        torch.full((size,), math.nan)


def check_against_pytorch(case, **tolerance):
    case = case.with_gradients()
    leave_garbage()
    out, expected = case.compiled(), case.expected()
    assert_close(out, expected, **tolerance)
    grad_out = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    for ours, theirs in zip(case.gradients(out, grad_out), case.gradients(expected, grad_out)):
        assert_close(ours, theirs, **tolerance)


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(sizes, sizes), min_size=1, max_size=5),
    n=st.integers(1, 3),
    q=st.sampled_from([1, 5, 60]),
    m=st.integers(1, 4),
    d=st.sampled_from([1, 2, 3, 4, 8, 16, 20, 32, 36, 64]),
    p=st.integers(1, 6),
    form=st.sampled_from(FORMS),
    per_level=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_agrees_with_pytorch_for_any_shape(make_case, compiled, **sizes):
    check_against_pytorch(make_case(**{**sizes, "shapes": tuple(sizes["shapes"])}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {"q": 300, "m": 8, "d": 32, "p": 4, "shapes": ((16, 15), (8, 8), (4, 4), (2, 2))},
        {"q": 5, "m": 8, "d": 32, "p": 4, "shapes": ((16, 15), (8, 8), (4, 4))},
        {"q": 90, "d": 256, "p": 3},
        {"q": 30, "d": 48, "p": 20, "shapes": ((5, 5),) * 4},
        {"q": 30, "d": 1, "p": 1, "shapes": ((1, 1), (1, 7), (7, 1))},
        {"q": 60, "d": 16, "p": 4, "form": "points"},
        {"q": 2, "d": 32, "p": 4, "form": "boxes", "per_level": True, "shapes": ((9, 8),) * 3},
    ],
    ids=str,
)
def test_every_instruction_set_agrees_with_pytorch(make_case, instruction_set, sizes, dtype):
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-4}
    check_against_pytorch(make_case(dtype=dtype, **sizes), **tolerance)


@pytest.mark.parametrize("q", [3, 40])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_derivatives(make_case, compiled, form, q):
    case = make_case(n=1, q=q, m=2, d=2, p=1, form=form, seed=3).with_gradients()
    assert torch.autograd.gradcheck(lambda *x: case.of(*x).compiled(), case.differentiable, fast_mode=q > 3)


def test_the_operator_is_registered_as_pytorch_demands(make_case, compiled):
    for form in FORMS:
        case = make_case(form=form)
        torch.library.opcheck(torch.ops.lowrank_d2.ms_deform_attn.default, case.with_gradients().arguments)
    value, shapes, places, weights, reference = case.arguments
    backward = torch.ops.lowrank_d2.ms_deform_attn_backward.default
    for wanted in ((True, False), (False, True)):
        torch.library.opcheck(backward, (case.compiled(), value, shapes, places, weights, reference, *wanted))


@pytest.mark.parametrize("index", range(3))
def test_a_gradient_that_nobody_needs_is_not_made(make_case, compiled, index):
    case = make_case(q=30)
    inputs = [x.clone() for x in case.differentiable]
    inputs[index].requires_grad_()
    (alone,) = torch.autograd.grad(case.of(*inputs).compiled().sum(), inputs[index])
    every = case.with_gradients()
    assert alone.equal(torch.autograd.grad(every.compiled().sum(), every.differentiable)[index])


def test_a_second_derivative_is_refused(make_case, compiled):
    case = make_case().with_gradients()
    (first,) = torch.autograd.grad(case.compiled().square().sum(), case.value, create_graph=True)
    with pytest.raises(RuntimeError, match="LOWRANK_D2_OPS=torch"):
        first.sum().backward()


@pytest.mark.parametrize("q", [3, 200])
def test_results_do_not_depend_on_the_number_of_threads(make_case, compiled, q):
    case = make_case(((16, 15), (8, 8), (4, 4)), n=1, q=q, m=2, d=16, p=4, dtype=torch.float32).with_gradients()
    usual, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 16):
            torch.set_num_threads(threads)
            out = case.compiled()
            results.append((out.detach(), *case.gradients(out, out.detach())))
    finally:
        torch.set_num_threads(usual)
    for result in results[1:]:
        assert all(x.equal(y) for x, y in zip(result, results[0]))


@pytest.mark.parametrize("q", [1, 50])
def test_borders_are_those_of_grid_sample(make_case, compiled, q):
    """Positions at, just inside and beyond the outermost cells' centers; the derivative there has a direction."""
    height, width, d = 4, 8, 16  # powers of two, so that positions are exact
    steps = torch.tensor([-1e10, -9.0, -1.0, -0.75, 0.0, 0.25, 3.0, 3.5, 4.0, 7.0, 7.25, 8.0, 9.0, 1e10], dtype=torch.float64)
    u, v = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack(((u.flatten() + 0.5) / width, (v.flatten() + 0.5) / height), -1)
    case = make_case(((height, width),), n=1, q=q, m=1, d=d, p=len(places))
    check_against_pytorch(case.of(case.value, places.expand_as(case.places), case.weights))


@pytest.mark.parametrize("q", [2, 50])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_stays_in_its_query_and_head(make_case, compiled, bad, axis, q):
    case = make_case(q=q, d=16, p=3).with_gradients()
    places = case.places.detach().clone()
    places[1, 1, 0, 1, 0, axis] = bad
    broken = case.of(case.value, places.requires_grad_(), case.weights)
    hit = torch.zeros(2, q, 3, 16, dtype=torch.bool)
    hit[1, 1, 0] = True
    out = broken.compiled()
    assert out.isnan().equal(hit.flatten(2))
    assert out[~hit.flatten(2)].equal(case.compiled()[~hit.flatten(2)])
    gradients = broken.gradients(out, torch.ones_like(out))
    assert gradients[0].isfinite().all()
    assert gradients[1].isnan().nonzero().tolist() == [[1, 1, 0, 1, 0, 1 - axis]]  # as in the PyTorch form
    expected = broken.gradients(broken.expected(), torch.ones_like(out))
    for ours, theirs in zip(gradients, expected):
        assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("q", [2, 50])
@pytest.mark.parametrize("name, form", [("places", form) for form in FORMS] + [("weights", "locations")])
def test_no_number_at_an_empty_level_does_not_count(make_case, compiled, name, form, q):
    case = make_case(((3, 4), (0, 5), (6, 5), (2, 0)), q=q, d=16, p=3, form=form)
    broken = {"places": case.places.clone(), "weights": case.weights.clone()}
    broken[name][1, 1, 0, 1::2] = torch.tensor([math.nan, math.inf, -math.inf]).view([3] + [1] * (name == "places"))
    broken = case.of(case.value, broken["places"], broken["weights"]).with_gradients()
    whole = case.with_gradients()
    out, expected = broken.compiled(), whole.compiled()
    assert out.equal(expected)
    gradients = (one.gradients(y, torch.ones_like(y)) for one, y in ((broken, out), (whole, expected)))
    for ours, theirs in zip(*gradients):
        assert ours.equal(theirs)


def test_infinite_cells_are_read_only_where_they_lie(make_case, compiled):
    for q in (1, 60):
        case = make_case(((5, 5),), n=1, q=q, m=1, d=16, p=4)
        value = case.value.clone()
        value[:, 0] = math.inf
        far = case.of(value, 0.3 + 0.4 * torch.rand_like(case.places), case.weights)  # never in the first cell
        outside = case.of(value, torch.full_like(case.places, -1.0), case.weights)
        assert far.compiled().isfinite().all() and outside.compiled().abs().max() == 0


def test_a_weight_that_is_no_number_counts_outside_too(make_case, compiled):
    case = make_case(n=1, q=2, m=1)
    weights = case.weights.clone()
    weights[0, 1] = math.nan
    out = case.of(case.value, torch.full_like(case.places, 5.0), weights).compiled()
    assert out[0, 0].abs().max() == 0 and out[0, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_float32(make_case, compiled, dtype, form):
    case = make_case(((40, 40), (9, 9)), q=50, d=16, p=4, form=form, dtype=torch.float32)
    value, weights = case.value.to(dtype), case.weights.to(dtype)
    half = case.of(value, case.places, weights).with_gradients()
    exact = case.of(value.float(), case.places, weights.float()).with_gradients()
    out, expected = half.compiled(), exact.compiled()
    assert out.dtype == dtype and out.equal(expected.to(dtype))
    grad_out = torch.randn_like(out)
    for ours, theirs in zip(half.gradients(out, grad_out), exact.gradients(expected, grad_out.float())):
        assert ours.equal(theirs.to(ours.dtype))


def test_strided_shifted_and_expanded_inputs_give_the_same(make_case, compiled):
    case = make_case(q=40, d=8)
    n, q = case.weights.shape[:2]
    same = case.of(case.value, case.places[:, :1].expand_as(case.places).clone(), case.weights).compiled()
    shifted = torch.cat((torch.zeros(1, dtype=torch.float64), case.value.flatten()))[1:].view_as(case.value)
    strided = case.value.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    for value in (shifted, strided):
        assert case.of(value, case.places[:, :1].expand_as(case.places), case.weights).compiled().equal(same)
    leaf = case.with_gradients()
    summed = torch.autograd.grad(leaf.compiled().sum(), leaf.differentiable)  # of an expanded gradient
    for x, y in zip(summed, leaf.gradients(leaf.compiled(), torch.ones_like(same))):
        assert x.equal(y)


@pytest.mark.parametrize("sizes", [{"n": 0}, {"q": 0}, {"p": 0}, {"m": 0}, {"d": 0}, {"shapes": ((0, 3), (2, 2), (4, 0))}], ids=str)
def test_empty_tensors_and_levels(make_case, compiled, sizes):
    case = make_case(**sizes).with_gradients()
    out = case.compiled()
    n, q, m = case.weights.shape[:3]
    assert out.shape == (n, q, m * case.value.shape[-1])
    for grad, x in zip(case.gradients(out, torch.ones_like(out)), case.differentiable):
        assert grad.shape == x.shape and grad.isfinite().all()
    if "shapes" in sizes:
        check_against_pytorch(make_case(**sizes))


def test_shapes_that_do_not_fit_are_refused_before_anything_is_read(make_case, compiled):
    case = make_case()
    value, shapes, places, weights, _ = case.arguments
    operator = torch.ops.lowrank_d2.ms_deform_attn
    for arguments in (
        (value, shapes[:2], places, weights, None),
        (value, [6, 5, 3, 5], places, weights, None),
        (value, [6, 5, -3, -4], places, weights, None),
        (value[:1], shapes, places, weights, None),
        (value, shapes, places[:, :-1], weights, None),
        (value, shapes, places, weights, places[:, :, 0, :, 0, :1]),
    ):
        with pytest.raises(RuntimeError, match="ms_deform_attn"):
            operator(*arguments)


class _Calls(torch.utils.data.Dataset):
    """Items that are results of the operator, computed in the worker."""

    def __init__(self, case):
        self.case = case

    def __len__(self):
        return 2

    def __getitem__(self, index):
        case = self.case.with_gradients()
        out = case.compiled()
        return out.detach(), *(x.detach() for x in case.gradients(out, torch.ones_like(out)))


def test_workers_that_are_forked_after_a_parallel_call_compute_the_same(make_case, compiled):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        calls = _Calls(make_case(((20, 30),), q=600, m=8, d=32, p=4, dtype=torch.float32))
        expected = calls[0]
        # A worker has one thread: with two, a forked process would wait for ever in any parallel operator of torch.
        loader = torch.utils.data.DataLoader(calls, None, num_workers=1, multiprocessing_context="fork", timeout=60)
        for found in loader:
            assert all(x.equal(y) for x, y in zip(found, expected))
    finally:
        torch.set_num_threads(before)
