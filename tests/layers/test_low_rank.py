import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lowrank_d2.layers.low_rank import low_rank_linear, merged_weight, merging_pays


def tensors_of(seed, tokens, n_in, n_out, rank, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    return draw(tokens, n_in), draw(n_out, n_in), draw(n_out) if bias else None, draw(rank, n_in), draw(n_out, rank)


def reference(x, weight, bias, down, up, scale):
    return F.linear(x, weight + scale * up @ down, bias)


def gradients(function, tensors, scale, target):
    leaves = [tensor for tensor in tensors if tensor is not None]
    return torch.autograd.grad((function(*tensors, scale) * target).sum(), leaves)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(0, 40),
    n_in=st.integers(1, 12),
    n_out=st.integers(1, 12),
    rank=st.integers(1, 6),
    bias=st.booleans(),
    scale=st.floats(0.1, 4),
)
def test_value_and_every_gradient_equal_autograd_in_both_orders(seed, tokens, n_in, n_out, rank, bias, scale):
    tensors = tensors_of(seed, tokens, n_in, n_out, rank, bias)
    want = reference(*tensors, scale)
    torch.testing.assert_close(low_rank_linear(*tensors, scale), want, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(low_rank_linear(*tensors, scale), want, rtol=1e-10, atol=1e-10)
    target = torch.randn_like(want)
    pairs = zip(gradients(low_rank_linear, tensors, scale, target), gradients(reference, tensors, scale, target))
    for ours, autograd in pairs:
        torch.testing.assert_close(ours, autograd, rtol=1e-9, atol=1e-9)


def test_the_order_is_merged_for_many_tokens_and_factored_for_few():
    assert merging_pays(17821, 256, 256) and merging_pays(384, 256, 256)
    assert not merging_pays(300, 256, 256) and not merging_pays(383, 256, 32)


@pytest.mark.parametrize("tokens", [3, 4000])
def test_nothing_is_kept_between_forward_and_backward_but_inputs(tokens):
    x, weight, bias, down, up = tensors_of(0, tokens, 16, 24, 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        low_rank_linear(x, weight.detach(), bias.detach(), down, up, 0.5)
    assert set(kept) <= {tensor.data_ptr() for tensor in (x, weight, down, up)}


def test_leading_dimensions_and_strides_do_not_matter():
    x, weight, bias, down, up = tensors_of(1, 30, 8, 5, 3)
    strided = x.view(5, 6, 8).transpose(0, 1)
    torch.testing.assert_close(
        low_rank_linear(strided, weight, bias, down, up, 2.0), reference(strided, weight, bias, down, up, 2.0)
    )


@pytest.mark.parametrize("tokens", [4, 64])
def test_autocast_computes_in_its_type_and_gives_gradients_in_the_parameters(tokens):
    x, weight, bias, down, up = tensors_of(2, tokens, 16, 16, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = low_rank_linear(x, weight, bias, down, up, 1.0)
        assert merged_weight(weight, down, up, 1.0).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert {tensor.grad.dtype for tensor in (x, weight, bias, down, up)} == {torch.float32}
    exact = reference(x, weight, bias, down, up, 1.0)
    assert (y.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_a_half_precision_weight_takes_a_wider_update():
    x, weight, bias, down, up = tensors_of(3, 4, 8, 8, 2, dtype=torch.float32)
    merged = merged_weight(weight.bfloat16(), down, up, 1.0)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (weight.bfloat16().float() + up @ down).bfloat16())
    assert low_rank_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), down, up, 1.0).dtype == torch.bfloat16


def test_the_frozen_weight_gets_no_gradient_computed():
    x, weight, bias, down, up = tensors_of(4, 10, 8, 8, 2)
    low_rank_linear(x, weight.detach(), bias.detach(), down, up, 1.0).sum().backward()
    assert weight.grad is None and bias.grad is None and down.grad is not None and up.grad is not None
