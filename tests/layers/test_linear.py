"""Linear layers as convolutions: the same numbers, and only where that is meant."""
import pytest
import torch
import torch.nn.functional as F

from lowrank_d2.layers.linear import Linear, PackedWeight, add_weight_gradient, input_gradient, linear


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def tensors(tokens, in_features=256, out_features=192, lead=()):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((*lead, tokens, in_features), generator=generator)
    weight = torch.randn((out_features, in_features), generator=generator) / 16
    return x, weight, torch.randn(out_features, generator=generator)


def calls_convolution(x, weight, bias=None):
    with torch.profiler.profile() as profile:
        linear(x, weight, bias)
    return any("conv" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("with_bias", [True, False])
def test_agrees_with_torch_forward_and_backward(threads, with_bias):
    x, weight, bias = tensors(tokens=300, lead=(2,))
    inputs = [x, weight, bias] if with_bias else [x, weight]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    expected, actual = F.linear(*inputs), linear(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual.shape == (2, 300, 192) and actual.is_contiguous()
    seed = torch.randn_like(expected)
    gradients = torch.autograd.grad(actual, inputs, seed)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, inputs, seed)):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-3)


def test_large_products_are_convolutions(threads):
    x, weight, bias = tensors(tokens=600)
    assert calls_convolution(x, weight, bias)
    assert not calls_convolution(x[:10], weight, bias)
    assert not calls_convolution(x.double(), weight.double(), bias.double())


def test_the_result_may_be_changed_in_place(threads):
    x, weight, bias = tensors(tokens=600)
    expected = F.linear(x, weight, bias) + 1
    torch.testing.assert_close(linear(x, weight, bias).add_(1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [lambda x: x.t().contiguous().t(), lambda x: x[::2], lambda x: x[:0]])
def test_takes_any_layout(threads, change):
    x, weight, bias = tensors(tokens=1200)
    x = change(x)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_takes_a_transposed_weight(threads):
    x, weight, _ = tensors(tokens=600)
    torch.testing.assert_close(linear(x, weight.t().contiguous().t()), x @ weight.t(), rtol=1e-5, atol=1e-5)


def test_autocast_keeps_its_type(threads):
    x, weight, bias = tensors(tokens=600)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        assert not calls_convolution(x, weight, bias)


def test_exported_as_a_linear(threads):
    layer = Linear(256, 192)
    program = torch.export.export(layer, (torch.randn(600, 256),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.linear.default"]


def test_a_function_that_returns_it_can_be_changed_in_place(threads):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return linear(x, 2 * weight)

        @staticmethod
        def backward(ctx, grad):
            return None, grad.flatten(0, -2).t() @ x.flatten(0, -2) * 2

    x, weight, _ = tensors(tokens=600)
    assert calls_convolution(x, weight)
    weight.requires_grad_()
    changed = F.relu(Doubled.apply(x, weight), inplace=True)
    gradient = torch.autograd.grad(changed.sum(), weight)[0]
    expected = torch.autograd.grad(F.relu(F.linear(x, 2 * weight)).sum(), weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


def test_a_frozen_weight_needs_no_input_kept(threads):
    x, weight, bias = tensors(tokens=300, lead=(2,))
    x.requires_grad_(), bias.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        actual = linear(x, weight, bias)
    assert kept == [weight.shape]
    seed = torch.randn_like(actual)
    expected = torch.autograd.grad(F.linear(x, weight, bias), (x, bias), seed)
    for gradient, other in zip(torch.autograd.grad(actual, (x, bias), seed), expected):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-3)


def test_a_frozen_weight_allows_second_derivatives_and_batches_of_gradients(threads):
    x, weight, _ = tensors(tokens=600)

    def energy(x):
        return linear(x, weight).square().sum() / 2

    first = torch.autograd.functional.hvp(energy, x, torch.ones_like(x))[1]
    torch.testing.assert_close(first, torch.ones_like(x) @ weight.t() @ weight, rtol=1e-4, atol=1e-3)
    gradients = torch.func.vmap(torch.func.grad(energy))(torch.stack((x, 2 * x)))
    expected = x @ weight.t() @ weight
    torch.testing.assert_close(gradients, torch.stack((expected, 2 * expected)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("turn", [False, True])
def test_the_input_s_gradient_is_the_product_with_the_weight(threads, turn):
    grad, weight, _ = tensors(tokens=300, in_features=192, out_features=256, lead=(2,))  # (2, 300, 192), (256, 192)
    weight = weight.t() if turn else weight.t().contiguous()
    for part in (grad, grad[:, :0], grad[:, :1]):
        result = input_gradient(part, weight)
        assert result.shape == (*part.shape[:-1], 256)
        torch.testing.assert_close(result, part @ weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out_features, in_features", [(1100, 96), (96, 1100), (256, 192), (24, 16)])
@pytest.mark.parametrize("uses", [(300,), (300, 200, 1), (0, 400)])
@pytest.mark.parametrize("begun", [False, True])
def test_adds_up_the_weight_gradient_of_several_uses(threads, out_features, in_features, uses, begun):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn((tokens, out_features), generator=generator) for tokens in uses]
    xs = [torch.randn((in_features, tokens), generator=generator).t() for tokens in uses]  # rows need not be contiguous
    total = torch.randn((out_features, in_features), generator=generator) if begun else None
    expected = sum(grad.double().t() @ x.double() for grad, x in zip(grads, xs))
    expected = expected + total.double() if begun else expected
    found = add_weight_gradient(total, grads, xs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert not begun or found is total


def test_large_uses_are_one_product_without_their_rows_side_by_side():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    grads, xs = ([torch.randn(256, features) for _ in range(4)] for features in (4096, 64))
    with torch.profiler.profile(record_shapes=True) as profile:
        add_weight_gradient(None, grads, xs)
    torch.set_num_threads(before)
    products = [e.input_shapes[0] for e in profile.events() if e.name == "aten::convolution_backward"]
    assert products and all(shape[1] < 4096 and shape[3] == 4 * 256 for shape in products)


@pytest.mark.parametrize("shape", [(200,), (2, 100), (3, 70), (5,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_packed_weight_multiplies_as_the_weight_itself(threads, shape, dtype):
    x, weight, bias = (tensor.to(dtype) for tensor in tensors(tokens=200, out_features=700))
    packed = PackedWeight(weight)
    for _ in range(2):
        torch.testing.assert_close(packed.linear(x, bias), linear(x, weight, bias), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(packed.linear(x), linear(x, weight), rtol=1e-5, atol=1e-5)
    x = torch.randn(*shape, 256, dtype=dtype)
    y = packed.linear(x, bias)  # of other tokens than it was packed for
    torch.testing.assert_close(y, linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous()
    grad = torch.randn(*shape, 700, dtype=dtype)
    for _ in range(2):
        torch.testing.assert_close(packed.input_gradient(grad), input_gradient(grad, weight), rtol=1e-4, atol=1e-4)
    grad = torch.randn(200, 700, dtype=dtype)
    torch.testing.assert_close(packed.input_gradient(grad), grad @ weight, rtol=1e-4, atol=1e-4)
