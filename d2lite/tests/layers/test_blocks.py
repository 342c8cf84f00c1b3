import pytest
import torch
from detectron2.layers import ASPP, CNNBlockBase, Conv2d, DepthwiseSeparableConv2d, FrozenBatchNorm2d, get_norm
from torch import nn


def test_freeze():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(1, 2, 4)
            self.conv = Conv2d(1, 2, 1, norm=get_norm("BN", 2))

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (1, 2, 4)
    assert block.freeze() is block and isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert not any(parameter.requires_grad for parameter in block.parameters())


def test_separable_convolution():
    conv = DepthwiseSeparableConv2d(3, 10, norm1="BN", activation1=nn.PReLU())
    assert conv.depthwise.groups == 3 and conv.depthwise.bias is None and conv.pointwise.bias is not None
    assert conv(torch.randn(1, 3, 6, 6)).shape == (1, 10, 6, 6)


@pytest.mark.parametrize("separable, parameters", [(False, 942), (True, 498)])
def test_aspp(separable, parameters):
    aspp = ASPP(
        4, 6, [2, 3, 4], norm="BN", activation=nn.ReLU(), dropout=0.5, use_depthwise_separable_conv=separable
    ).eval()
    assert aspp(torch.randn(2, 4, 9, 7)).shape == (2, 6, 9, 7)
    assert sum(parameter.numel() for parameter in aspp.parameters()) == parameters
    assert [tuple(aspp.convs[4][1].bias.shape), tuple(aspp.project.weight.shape)] == [(6,), (6, 30, 1, 1)]


def test_aspp_pool_size():
    aspp = ASPP(4, 6, [2, 3, 4], norm="", activation=nn.ReLU(), pool_kernel_size=(4, 4))
    assert aspp(torch.randn(1, 4, 8, 8)).shape == (1, 6, 8, 8)
    with pytest.raises(ValueError):
        aspp(torch.randn(1, 4, 8, 6))
    with pytest.raises(AssertionError):
        ASPP(4, 6, [2, 3], norm="", activation=nn.ReLU())
