import torch
from detectron2.layers import Conv2d, ShapeSpec, cat, cross_entropy, move_device_like, nonzero_tuple, shapes_to_tensor
from torch import nn
from torch.nn import functional as F


def test_conv_norm_activation_in_this_order():
    conv = Conv2d(2, 3, 1, bias=False, norm=nn.BatchNorm2d(3).eval(), activation=F.relu)
    conv.norm.running_mean += 1
    x = torch.randn(2, 2, 4, 4)
    assert torch.equal(conv(x), F.relu(conv.norm(F.conv2d(x, conv.weight))))
    assert conv(torch.zeros(0, 2, 4, 4)).shape == (0, 3, 4, 4)
    assert set(conv.state_dict()) >= {"weight", "norm.weight", "norm.running_var"}


def test_cross_entropy_of_nothing_is_zero_with_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 5)
    some, target = torch.randn(3, 5), torch.tensor([0, 1, 4])
    assert torch.equal(cross_entropy(some, target, reduction="sum"), F.cross_entropy(some, target, reduction="sum"))


def test_small_functions():
    one = torch.ones(2)
    assert cat([one]) is one and cat([one, one]).shape == (4,)
    assert [index.tolist() for index in nonzero_tuple(torch.tensor([[1, 0], [0, 2]]))] == [[0, 1], [0, 1]]
    assert [index.tolist() for index in nonzero_tuple(torch.tensor(3))] == [[0]]
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert move_device_like(one, torch.zeros(1)).device == one.device


def test_shape_spec():
    assert ShapeSpec(3) == ShapeSpec(channels=3, height=None, width=None, stride=None)
    spec = ShapeSpec(stride=4)
    spec.channels = 8
    assert (spec.channels, spec.stride) == (8, 4)
