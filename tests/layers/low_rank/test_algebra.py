import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lowrank_d2.layers.low_rank import Hadamard, Kronecker, LowRank, Magnitude, adapted_linear, algebra, khatri_rao

SCALE = 0.7


def draw(seed, *shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def kron_rows(weight, w1, a, b, rows):
    return weight + SCALE * rows[:, None] * torch.kron(w1, a @ b)


def directions(weight, down, up, magnitude):
    rows = weight + SCALE * up @ down
    return magnitude[:, None] * rows / rows.detach().norm(dim=1, keepdim=True)


def forms(n_out, n_in, rank):
    """name -> (update, shapes of its factors, W' written down plainly); out and in are multiples of 4."""
    rows = torch.linspace(0, 2, n_out, dtype=torch.float64)
    blocks = [(4, 2), (n_out // 4, rank), (rank, n_in // 2)]
    hadamard = [(n_out, rank), (rank, n_in), (n_out, rank), (rank, n_in)]
    return {
        "low rank": (LowRank(SCALE), [(rank, n_in), (n_out, rank)], lambda w, a, b: w + SCALE * b @ a),
        "hadamard": (Hadamard(SCALE), hadamard, lambda w, a1, b1, a2, b2: w + SCALE * (a1 @ b1) * (a2 @ b2)),
        "kronecker": (
            Kronecker(SCALE), [(2, 4), (n_out // 2, n_in // 4)], lambda w, w1, w2: w + SCALE * torch.kron(w1, w2)),
        "kronecker, thin": (Kronecker(SCALE), blocks, lambda w, w1, a, b: w + SCALE * torch.kron(w1, a @ b)),
        "kronecker, rows": (Kronecker(SCALE, rows), blocks, lambda w, w1, a, b: kron_rows(w, w1, a, b, rows)),
        "magnitude": (Magnitude(SCALE), [(rank, n_in), (n_out, rank), (n_out,)], directions),
    }


NAMES = list(forms(4, 4, 1))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10_000),
    tokens=st.integers(0, 60),
    n_in=st.integers(1, 10).map(lambda x: 4 * x),
    n_out=st.integers(1, 10).map(lambda x: 4 * x),
    rank=st.integers(1, 5),
    bias=st.booleans(),
    weight_trains=st.booleans(),
)
def test_value_and_every_gradient_equal_autograd(name, seed, tokens, n_in, n_out, rank, bias, weight_trains):
    update, shapes, plain = forms(n_out, n_in, rank)[name]
    x, weight, b, *factors = draw(seed, (tokens, n_in), (n_out, n_in), (n_out,), *shapes)
    weight.requires_grad_(weight_trains)
    b = b if bias else None
    want = F.linear(x, plain(weight, *factors), b)
    got = adapted_linear(x, weight, b, update, *factors)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(adapted_linear(x, weight, b, update, *factors), want, rtol=1e-10, atol=1e-10)
    leaves = [leaf for leaf in (x, weight, b, *factors) if leaf is not None and leaf.requires_grad]
    target = torch.randn_like(want)
    ours, autograd = (torch.autograd.grad((y * target).sum(), leaves) for y in (got, want))
    for a, b in zip(ours, autograd):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1, b.abs().max().item()) if b.numel() else 0)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_gradients_equal_autograd_to_one_part_in_a_hundred_thousand(name):
    update, shapes, plain = forms(256, 256, 8)[name]
    x, weight, bias, *factors = draw(0, (1300, 256), (256, 256), (256,), *shapes, dtype=torch.float32)
    target = torch.randn(1300, 256)
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, weight, bias, *factors)]
    loss = (F.linear(exact[0], plain(exact[1], *exact[3:]), exact[2]) * target).sum()
    want = torch.autograd.grad(loss, [exact[0], *exact[3:]])
    y = adapted_linear(x, weight.detach(), bias.detach(), update, *factors)
    got = torch.autograd.grad((y * target).sum(), [x, *factors])
    for ours, theirs in zip(got, want):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_khatri_rao_factors_give_the_hadamard_product():
    a1, b1, a2, b2 = draw(3, (5, 2), (2, 7), (5, 2), (2, 7))
    down, up = khatri_rao(a1, b1, a2, b2)
    assert down.shape == (4, 7) and up.shape == (5, 4)
    torch.testing.assert_close(up @ down, (a1 @ b1) * (a2 @ b2))


def test_the_order_follows_the_shapes():
    def order(update, tokens, n_out, n_in, *shapes):
        both = (tokens, n_out), (tokens, n_in), (n_out, n_in)
        grad, x, weight, *factors = draw(0, *both, *shapes, dtype=torch.float32)
        thin = update.thin(grad, x, weight, False, *factors)
        branched = update.branched(x, weight, None, *factors)
        return ["dense" if thin is None else "thin", "merged" if branched is None else "branched"]

    lora = LowRank(1.0)
    assert order(lora, 308, 256, 256, (8, 256), (256, 8)) == ["thin", "merged"]
    assert order(lora, 307, 32, 256, (8, 256), (32, 8)) == ["thin", "branched"]
    assert order(lora, 400, 64, 64, (32, 64), (64, 32)) == ["dense", "merged"]
    assert order(Magnitude(1.0), 400, 256, 256, (8, 256), (256, 8), (256,)) == ["dense", "branched"]
    assert order(Kronecker(1.0), 9, 256, 256, (8, 8), (32, 8), (8, 32)) == ["thin", "merged"]
    assert order(Kronecker(1.0), 9, 256, 256, (16, 16), (16, 8), (8, 16)) == ["dense", "merged"]
    assert order(Kronecker(1.0), 9, 256, 256, (16, 16), (16, 16)) == ["dense", "merged"]


@pytest.mark.parametrize("tokens", [3, 4000])
@pytest.mark.parametrize("name", NAMES)
def test_little_is_kept_between_forward_and_backward(tokens, name):
    update, shapes, _ = forms(24, 16, 2)[name]
    x, weight, bias, *factors = draw(0, (tokens, 16), (24, 16), (24,), *shapes)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        adapted_linear(x, weight.detach(), bias.detach(), update, *factors)
    inputs = {tensor.data_ptr() for tensor in (x, weight, *factors)}
    beyond = sum(tensor.numel() for tensor in kept if tensor.data_ptr() not in inputs)
    hidden = 2 * tokens if tokens == 3 else 0
    allowed = {"low rank": hidden, "magnitude": hidden + 24 * tokens + 4 * 24}
    assert beyond <= allowed.get(name, 0)


def test_leading_dimensions_and_strides_do_not_matter():
    x, weight, bias, down, up = draw(1, (30, 8), (5, 8), (5,), (3, 8), (5, 3))
    strided = x.view(5, 6, 8).transpose(0, 1)
    want = F.linear(strided, weight + 2 * up @ down, bias)
    torch.testing.assert_close(adapted_linear(strided, weight, bias, LowRank(2.0), down, up), want)


@pytest.mark.parametrize("tokens", [4, 64])
def test_autocast_computes_in_its_type_and_gives_gradients_in_the_parameters(tokens):
    x, weight, bias, down, up = draw(2, (tokens, 16), (16, 16), (16,), (2, 16), (16, 2), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = adapted_linear(x, weight, bias, LowRank(1.0), down, up)
        assert LowRank(1.0).merged(weight, down, up).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert {tensor.grad.dtype for tensor in (x, weight, bias, down, up)} == {torch.float32}
    exact = F.linear(x, weight + up @ down, bias)
    assert (y.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_half_precision_weight_takes_a_wider_update(name):
    update, shapes, plain = forms(8, 8, 2)[name]
    x, weight, bias, *factors = draw(3, (40, 8), (8, 8), (8,), *shapes, dtype=torch.float32)
    half = weight.detach().bfloat16()
    merged = update.merged(half, *factors)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, plain(half.float(), *factors).bfloat16(), rtol=0.01, atol=0)
    y = adapted_linear(x.bfloat16(), half, bias.detach().bfloat16(), update, *factors)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert {factor.grad.dtype for factor in factors} == {torch.float32}


def test_a_row_without_length_is_left_and_can_still_learn():
    weight = torch.zeros(3, 4, dtype=torch.float64)
    x, down, up = draw(5, (6, 4), (2, 4), (3, 2))
    magnitude = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    y = adapted_linear(x, weight, None, Magnitude(1.0), down, (0 * up).detach().requires_grad_(), magnitude)
    assert not y.any()
    up = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    adapted_linear(x, weight, None, Magnitude(1.0), down, up, magnitude).sum().backward()
    assert up.grad.isfinite().all() and up.grad.abs().min() > 0 and magnitude.grad.isfinite().all()


def test_the_frozen_weight_gets_no_gradient_computed(monkeypatch):
    x, weight, bias, down, up = draw(4, (10, 8), (8, 8), (8,), (1, 8), (8, 1))
    monkeypatch.setattr(algebra, "_through_dense", lambda *_: pytest.fail("the dense gradient was formed"))
    adapted_linear(x, weight.detach(), bias.detach(), LowRank(1.0), down, up).sum().backward()
    assert weight.grad is None and bias.grad is None and down.grad is not None and up.grad is not None
