"""Gradients of a weight that several layers use, added up by the products themselves."""
import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_d2.layers.low_rank import LowRankResidualKernel, LowRankResidualLinear, SharedLinear, together


class Stack(nn.Module):
    """Three uses of one Linear and of one kernel generator, with private parts."""

    def __init__(self):
        super().__init__()
        self.square, self.generator = SharedLinear(12, 12, bias=False), SharedLinear(12, 12 * 5)
        self.layers = nn.ModuleList(LowRankResidualLinear(self.square, 2) for _ in range(3))
        self.kernels = nn.ModuleList(LowRankResidualKernel(self.generator, 2, k, shape=(12, 5)) for k in (1, 2, 3))

    def forward(self, x):
        total = 0
        for layer, kernel in zip(self.layers, self.kernels):
            x = layer(x).tanh()
            total = total + kernel(x[..., None, :], x).square().sum() + x.sum()
        return total


@pytest.fixture
def stack():
    torch.manual_seed(0)
    model = Stack().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)


def gradients(model, x, inside):
    inputs = (x, *model.parameters())
    if not inside:
        return torch.autograd.grad(model(x), inputs)
    with together(model):
        y = model(x)
    return torch.autograd.grad(y, inputs)


def test_together_changes_no_gradient(stack, x):
    for one, true in zip(gradients(stack, x, inside=True), gradients(stack, x, inside=False)):
        torch.testing.assert_close(one, true, rtol=1e-12, atol=1e-12)


def test_a_pass_that_asked_for_something_else_leaves_nothing_behind(stack, x):
    expected = gradients(stack, x, inside=False)
    with together(stack):
        y = stack(x)
    (grad_x,) = torch.autograd.grad(y, x, retain_graph=True)
    twice = [torch.autograd.grad(y, (x, *stack.parameters()), retain_graph=True) for _ in range(2)]
    torch.testing.assert_close(grad_x, expected[0])
    for found in twice:
        for one, true in zip(found, expected):
            torch.testing.assert_close(one, true)


@pytest.mark.parametrize("tokens", [700, 1500])
def test_few_and_many_tokens_are_added_up_alike(tokens):
    torch.manual_seed(0)
    shared = SharedLinear(64, 96)
    layers = nn.ModuleList(LowRankResidualLinear(shared, rank, bias=True) for rank in (2, 0, 3))
    for parameter in (*shared.parameters(), *layers.parameters()):
        nn.init.normal_(parameter, std=0.3)
    x, seed = torch.randn(tokens, 64, requires_grad=True), torch.randn(tokens, 96)
    inputs = (x, *shared.parameters(), *layers.parameters())

    def found(inside):
        with together(shared) if inside else contextlib.nullcontext():
            return torch.autograd.grad(sum(layer(x) for layer in layers), inputs, seed)

    for one, true in zip(found(inside=True), found(inside=False)):
        torch.testing.assert_close(one, true, rtol=1e-4, atol=1e-3)


class Places(TorchDispatchMode):
    """Where in memory results of a given shape stand."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.found = shape, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape == self.shape:
            self.found.add(result.data_ptr())
        return result


@pytest.mark.parametrize("inside", [True, False])
def test_the_uses_share_one_gradient_in_memory(stack, x, inside):
    weight = stack.generator.weight
    with together(stack) if inside else contextlib.nullcontext():
        y = stack(x)
    with Places(weight.shape) as seen:
        y.backward()
    gradients = seen.found - {weight.data_ptr()}
    assert gradients == {weight.grad.data_ptr()} if inside else len(gradients) > 1


def test_autocast_takes_the_plain_way(stack, x):
    model, x = copy.deepcopy(stack).float(), x.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with together(model):
            found = model(x)
    assert torch.equal(found, expected)
    found.backward()
    assert model.square.weight.grad.any()


def test_a_frozen_weight_gets_no_gradient(stack, x):
    stack.square.weight.requires_grad_(False)
    rest = [p for p in stack.parameters() if p.requires_grad]
    expected = torch.autograd.grad(stack(x), (x, *rest))
    with together(stack):
        y = stack(x)
    for one, true in zip(torch.autograd.grad(y, (x, *rest)), expected):
        torch.testing.assert_close(one, true, rtol=1e-12, atol=1e-12)


def test_a_weight_that_changes_before_the_backward_pass_is_an_error(stack, x):
    with together(stack):
        y = stack(x)
    with torch.no_grad():
        stack.square.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        y.backward()


class Reorders(TorchDispatchMode):
    """How often a weight was brought into oneDNN's order."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "reorder" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recorded", [True, False])
def test_a_large_weight_is_packed_once_for_all_uses(recorded):
    torch.manual_seed(0)
    shared = SharedLinear(256, 512)
    layers = [LowRankResidualLinear(shared, 2, bias=True) for _ in range(3)]
    x = torch.randn(200, 256, requires_grad=True)
    with torch.set_grad_enabled(recorded):
        expected = torch.stack([layer(x) for layer in layers])
        with Reorders() as reorders, together(shared):
            found = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(found, expected)
    assert reorders.count == 1
    if recorded:
        (true,) = torch.autograd.grad(expected.square().sum(), x)
        with Reorders() as reorders:
            (grad,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
        torch.testing.assert_close(grad, true, rtol=1e-4, atol=1e-4)
        assert reorders.count == 1


def test_nothing_stays_after_an_error(stack, x):
    with pytest.raises(RuntimeError), together(stack):
        stack(x[..., :3])
    assert "_common" not in vars(stack.square)
    assert copy.deepcopy(stack).state_dict().keys() == stack.state_dict().keys()
