import pytest
import torch
import torch.nn.functional as F

from lowrank_d2.layers import mlp as module
from lowrank_d2.layers.mlp import MLP, FeedForward


def test_mlp_has_relu_between_its_layers_only():
    mlp = MLP(input_dim=3, hidden_dim=5, output_dim=2, num_layers=3)
    x = torch.randn(4, 3)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(x), third(F.relu(second(F.relu(first(x))))))
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(5, 3), (5, 5), (2, 5)]


def test_feed_forward_adds_to_the_stream_before_its_norm():
    block = FeedForward(embed_dim=6, hidden_dim=10)
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(block(x), block.norm(x + block.linear2(F.relu(block.linear1(x)))))


def test_feed_forward_in_pieces_is_the_same_and_never_has_the_hidden_layer_whole(monkeypatch):
    block = FeedForward(embed_dim=6, hidden_dim=10)
    x = torch.randn(2, 7, 6)
    expected = block(x)
    sizes = []
    block.linear2.register_forward_pre_hook(lambda linear, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 4)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected.detach())
    assert sizes == [4, 4, 4, 2]


def test_a_frozen_feed_forward_in_training_works_in_pieces_when_its_input_has_no_gradient(monkeypatch):
    block = FeedForward(embed_dim=6, hidden_dim=10).requires_grad_(False)
    calls = []
    block.linear1.register_forward_pre_hook(lambda linear, inputs: calls.append(len(inputs[0])))
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 4)
    block(torch.randn(8, 6))
    assert calls == [4, 4]


def saved_shapes(function):
    """What `function` returns, and the types and shapes that autograd keeps for it."""
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.add((x.dtype, tuple(x.shape))) or x, lambda x: x):
        return function(), kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_frozen_feed_forward_has_the_plain_gradient_and_keeps_bytes_of_its_hidden_layer(monkeypatch, dtype):
    torch.manual_seed(0)
    block = FeedForward(embed_dim=6, hidden_dim=10).to(dtype).requires_grad_(False)
    monkeypatch.setattr(module, "RECORDED_TOKENS_AT_ONCE", 4)
    x, grad = torch.randn(2, 7, 6, dtype=dtype, requires_grad=True), torch.randn(2, 7, 6, dtype=dtype)
    actual, kept = saved_shapes(lambda: block(x))
    expected = block.norm(x + block.linear2(F.relu(block.linear1(x))))
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(y, x, grad)[0] for y in (actual, expected)]
    torch.testing.assert_close(*gradients)
    assert {(kind, shape) for kind, shape in kept if shape[-1] == 10 and shape[0] != 6} == {(torch.bool, (14, 10))}


def test_a_unit_that_is_off_passes_nothing_on_even_of_an_infinite_gradient():
    block = FeedForward(embed_dim=1, hidden_dim=1).requires_grad_(False)
    block.linear1.weight.fill_(1), block.linear1.bias.fill_(0)
    x = torch.tensor([[-2.0]], requires_grad=True)
    assert torch.autograd.grad(block._frozen(x), x, torch.tensor([[torch.inf]]))[0].tolist() == [[torch.inf]]


def keep_dropout(block):
    block.dropout.p = 0.5


def train_second(block):
    block.linear2.weight.requires_grad_()


def watch_first(block):
    block.linear1.register_forward_hook(lambda linear, inputs, output: 2 * output)


@pytest.mark.parametrize("change", [keep_dropout, train_second, watch_first])
def test_what_needs_the_hidden_layer_gets_it(change):
    torch.manual_seed(0)
    block = FeedForward(embed_dim=6, hidden_dim=10).requires_grad_(False)
    change(block)
    x = torch.randn(7, 6, requires_grad=True)
    torch.manual_seed(1)
    actual, kept = saved_shapes(lambda: block(x))
    assert (torch.float32, (7, 10)) in kept
    torch.manual_seed(1)
    torch.testing.assert_close(actual, block.norm(x + block._change(x)))


def test_a_frozen_feed_forward_under_autocast_runs_in_its_type():
    block = FeedForward(embed_dim=6, hidden_dim=10).requires_grad_(False)
    x = torch.randn(7, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, kept = saved_shapes(lambda: block(x))
    assert (torch.bfloat16, (7, 10)) in kept
    out.sum().backward()
    assert x.grad.dtype == torch.float32
