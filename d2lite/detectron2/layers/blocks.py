"""Bases and building blocks of convolutional networks."""
import fvcore.nn.weight_init as weight_init
from torch import nn

from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d


class CNNBlockBase(nn.Module):
    """A block with one input and one output feature map."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def freeze(self):
        """Stop training this block: its parameters get no gradient, its batch norms become frozen ones."""
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self.requires_grad_(False))


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution within each channel, then one of size 1 across channels (Xception, arXiv:1610.02357).

    Each has its norm (as for :func:`get_norm`) and its activation.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size=3, padding=1, dilation=1, *, norm1=None, activation1=None,
        norm2=None, activation2=None,
    ):
        super().__init__()
        self.depthwise = Conv2d(
            in_channels, in_channels, kernel_size=kernel_size, padding=padding, dilation=dilation, groups=in_channels,
            bias=not norm1, norm=get_norm(norm1, in_channels), activation=activation1,
        )
        self.pointwise = Conv2d(
            in_channels, out_channels, kernel_size=1, bias=not norm2, norm=get_norm(norm2, out_channels),
            activation=activation2,
        )
        for convolution in (self.depthwise, self.pointwise):
            weight_init.c2_msra_fill(convolution)

    def forward(self, x):
        within = self.depthwise(x)
        return self.pointwise(within)
