"""Frozen convolutions and ReLU that keep little give the gradients of the plain ones."""
import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from seem.convolution import PyramidConv, relu_


def make(kind, activation, channels=4, **options):
    torch.manual_seed(0)
    return kind(channels, 8, kernel_size=3, bias=False, norm=nn.GroupNorm(2, 8), activation=activation, **options)


def saved_bytes(module, x):
    """Bytes that autograd keeps between the passes, without the parameters; and the output."""
    own = {p.data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(x)
    return sum(kept.values()), out


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2, "groups": 2}])
@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_plain_layer(options, memory_format, channels):
    x = torch.randn(2, channels, 9, 7).to(memory_format=memory_format)
    results = []
    for kind, activation in ((Conv2d, torch.relu), (PyramidConv, relu_)):
        layer = make(kind, activation, channels, **options).requires_grad_(False)
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        results.append((out, leaf.grad))
    torch.testing.assert_close(results[0], results[1])


def test_a_frozen_layer_keeps_one_map_and_a_byte_an_element():
    layer = make(PyramidConv, relu_, padding=1).requires_grad_(False)
    x = torch.randn(2, 4, 16, 16, requires_grad=True)
    kept, out = saved_bytes(layer, x)
    statistics = 2 * 2 * 2 * 4
    assert kept == out.numel() * (4 + 1) + statistics


def test_a_layer_that_trains_has_its_gradient():
    layer, plain = make(PyramidConv, relu_), make(Conv2d, torch.relu)
    x = torch.randn(1, 4, 6, 6)
    for each in (layer, plain):
        each(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    torch.testing.assert_close(layer.norm.weight.grad, plain.norm.weight.grad)


def test_autocast_is_left_to_torch():
    layer = make(PyramidConv, relu_).requires_grad_(False)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0
