"""Layers around one shared weight: what they compute, how they start, who owns what."""
import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_d2.layers.low_rank import GeneratedKernel, LowRankResidualKernel, LowRankResidualLinear


def randomised(*modules):
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return modules[-1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("tokens", [2, 500], ids=["branched", "merged"])
def test_a_static_layer_is_the_shared_weight_plus_its_products(groups, tokens):
    shared = nn.Linear(20, 7, bias=False)
    layer = randomised(shared, LowRankResidualLinear(shared, 2, groups))
    x = torch.randn(tokens, 20, requires_grad=True)
    whole = shared.weight.T + sum(b @ a for b, a in zip(layer.B, layer.A))  # d x h, as in the paper
    expected = x @ whole + layer.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), expected)
    inputs = (x, shared.weight, layer.B, layer.A, layer.bias)
    weights = torch.randn(tokens, 7)
    found = torch.autograd.grad((layer(x) * weights).sum(), inputs)
    for mine, true in zip(found, torch.autograd.grad((expected * weights).sum(), inputs)):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_an_adaptive_kernel_is_the_generated_one_plus_its_products(left, groups):
    d, h, dim, n = 6, 10, 8, 5
    shared = nn.Linear(dim, d * h)
    layer = randomised(shared, LowRankResidualKernel(shared, 3, groups, shape=(d, h), left=left))
    q = torch.randn(2, 4, dim, requires_grad=True)
    x = torch.randn(2, 4, n, d, requires_grad=True)
    numbers = shared(q)
    whole = numbers.view(2, 4, h, d).mT if left else numbers.view(2, 4, d, h)
    core = layer.E(q).view(2, 4, groups, 3, 3)
    whole = whole + sum(layer.B[k] @ core[:, :, k] @ layer.A[k] for k in range(groups))
    torch.testing.assert_close(layer.kernel(q), whole)
    expected = x @ whole
    mine = layer(x.mT, q).mT if left else layer(x, q)
    torch.testing.assert_close(mine, expected)
    inputs = (x, q, *shared.parameters(), *layer.parameters())
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((mine * weights).sum(), inputs)
    for one, true in zip(found, torch.autograd.grad((expected * weights).sum(), inputs)):
        torch.testing.assert_close(one, true)


@pytest.mark.parametrize("left", [False, True])
def test_one_query_or_none_needs_no_dimension_of_its_own(left):
    shared = nn.Linear(8, 6 * 10)
    layer = randomised(shared, LowRankResidualKernel(shared, 3, 2, shape=(6, 10), left=left))
    q, x = torch.randn(8), torch.randn(5, 6)
    mine = layer(x.mT, q).mT if left else layer(x, q)
    torch.testing.assert_close(mine, x @ layer.kernel(q))
    nobody = layer(torch.zeros(0, 6, 5) if left else torch.zeros(0, 5, 6), torch.zeros(0, 8))
    assert nobody.shape == ((0, 10, 5) if left else (0, 5, 10))


@pytest.mark.parametrize("rank, groups", [(0, 1), (2, 0)])
def test_without_a_private_part_layers_are_plain_ones_bit_for_bit(rank, groups):
    torch.set_default_dtype(torch.float32)
    plain, generator = nn.Linear(256, 24), nn.Linear(12, 30)
    static = LowRankResidualLinear(plain, rank, groups)
    own = LowRankResidualLinear(plain, rank, groups, bias=True)
    x, q = torch.randn(3, 9, 256), torch.randn(3, 12)
    assert torch.equal(static(x), plain(x)) and static.weight is plain.weight
    assert list(static.parameters()) == [] and list(own.parameters()) == [own.bias]
    torch.testing.assert_close(own(x), plain(x) + own.bias)
    for left, y in ((False, torch.randn(3, 7, 5)), (True, torch.randn(3, 5, 7))):
        kernel = LowRankResidualKernel(generator, rank, groups, shape=(5, 6), left=left)
        assert torch.equal(kernel(y, q), GeneratedKernel(generator, (5, 6), left=left)(y, q))
        assert torch.equal(kernel.kernel(q), GeneratedKernel(generator, (5, 6), left=left).kernel(q))
        assert list(kernel.parameters()) == []


def test_layers_start_as_the_shared_one_and_the_zeros_learn_first():
    shared, generator = nn.Linear(30, 8, bias=False), nn.Linear(12, 16)
    layer, kernel = LowRankResidualLinear(shared, 4, 2, bias=False), LowRankResidualKernel(generator, 4, 2)
    x, q, y = torch.randn(9, 30), torch.randn(9, 12), torch.randn(9, 5, 4)
    torch.testing.assert_close(layer(x), shared(x))
    assert torch.equal(kernel(y, q), GeneratedKernel(generator)(y, q))
    (layer(x).square().sum() + kernel(y, q).square().sum()).backward()
    assert layer.A.grad.abs().min() > 0 and not layer.B.grad.any()
    assert kernel.E.weight.grad.abs().min() > 0 and kernel.E.bias.grad.abs().min() > 0
    assert not kernel.A.grad.any() and not kernel.B.grad.any()


class Allocations(TorchDispatchMode):
    """Where in memory results of a given number of elements stand."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.places = numel, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.numel:
            self.places.add(result.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("left", [False, True])
def test_the_private_kernel_is_never_formed(left):
    d, h, queries = 11, 13, 7
    layer = LowRankResidualKernel(nn.Linear(3, d * h), 2, 5, shape=(d, h), left=left)
    q, x = torch.randn(queries, 3, requires_grad=True), torch.randn(queries, 17, d)
    with Allocations(queries * d * h) as forward:
        y = layer(x.mT if left else x, q)
    with Allocations(queries * d * h) as backward:
        y.sum().backward()
    assert len(forward.places) == 1  # the generated one
    assert len(backward.places) == 1  # its gradient


@pytest.mark.parametrize("left", [False, True])
def test_under_autocast_a_kernel_is_that_of_rounded_factors(left):
    torch.set_default_dtype(torch.float32)
    shared = nn.Linear(8, 6 * 10)
    layer = randomised(shared, LowRankResidualKernel(shared, 3, 2, shape=(6, 10), left=left))
    q, x = torch.randn(4, 8, requires_grad=True), torch.randn(4, 5, 6)
    expected = x @ layer.kernel(q)
    wanted = torch.autograd.grad(expected.sum(), (q, *layer.parameters(), shared.weight))
    with torch.autocast("cpu", torch.bfloat16):
        mine = layer(x.mT, q).mT if left else layer(x, q)
    assert mine.dtype == torch.bfloat16
    found = torch.autograd.grad(mine.float().sum(), (q, *layer.parameters(), shared.weight))
    for one, true in zip((mine, *found), (expected, *wanted)):
        near = 0.02 * true.abs().max().item()
        torch.testing.assert_close(one.float(), true, rtol=0.02, atol=near)


def test_initial_values_are_uniform_over_the_input_side():
    shared, generator = nn.Linear(4096, 64, bias=False), nn.Linear(16, 64 * 128)
    layer = LowRankResidualLinear(shared, 16, 3)
    kernel = LowRankResidualKernel(generator, 32, 3, shape=(64, 128))
    for tensor, fan_in in ((layer.B, 4096), (kernel.B, 64), (kernel.A, 32), (shared.weight, 4096)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.98 * bound < tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert layer.bias.abs().max() <= 1 / 64
    for zero in (layer.A, kernel.E.weight, kernel.E.bias):
        assert not zero.any()


def test_the_shared_linear_belongs_to_its_owner_alone():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(6, 6, bias=False)
            self.layers = nn.Sequential(*(LowRankResidualLinear(self.shared, 1) for _ in range(3)))

    stack = Stack()
    private = {f"layers.{i}.{name}" for i in range(3) for name in ("A", "B", "bias")}
    assert stack.state_dict().keys() == {"shared.weight"} | private
    x = torch.randn(2, 6)
    stack.layers(x).sum().backward()
    total = stack.shared.weight.grad.clone()
    # Its gradient is the sum over the uses: the same stack with copies in its place.
    copies = copy.deepcopy(stack)
    for layer in copies.layers:
        layer.__dict__["shared"] = copy.deepcopy(stack.shared)
        layer.shared.zero_grad()
    copies.layers(x).sum().backward()
    torch.testing.assert_close(sum(layer.shared.weight.grad for layer in copies.layers), total)

    twin = copy.deepcopy(stack).float()
    assert twin.layers[2].shared is twin.shared and twin.layers[0](x.float()).dtype == torch.float32
    assert stack.shared.weight.dtype == torch.float64


def test_what_cannot_be_built_is_said():
    with pytest.raises(ValueError, match="rank -1"):
        LowRankResidualLinear(nn.Linear(3, 4), -1)
    with pytest.raises(ValueError, match="groups -2"):
        LowRankResidualKernel(nn.Linear(3, 4), 1, -2)
    with pytest.raises(ValueError, match="8 outputs, which are no kernel of 2 x 2. Give `shape`"):
        LowRankResidualKernel(nn.Linear(3, 8), 1)
    with pytest.raises(ValueError, match="3 x 3"):
        GeneratedKernel(nn.Linear(3, 8), (3, 3))
