"""Atrous spatial pyramid pooling (DeepLab v3, arXiv:1706.05587)."""
from copy import deepcopy

import fvcore.nn.weight_init as weight_init
import torch
from torch import nn
from torch.nn import functional as F

from .batch_norm import get_norm
from .blocks import DepthwiseSeparableConv2d
from .wrappers import Conv2d


class ASPP(nn.Module):
    """One 1x1 convolution, three dilated ones and the image's mean, side by side, then projected together.

    `norm` is as for :func:`get_norm`; the pooled branch has none. Each convolution gets a copy of `activation`.
    `pool_kernel_size` (h, w) is what the mean is taken over, a divisor of the input's size; None: all of it.
    """

    def __init__(
        self, in_channels, out_channels, dilations, *, norm, activation, pool_kernel_size=None, dropout: float = 0.0,
        use_depthwise_separable_conv=False,
    ):
        super().__init__()
        assert len(dilations) == 3, f"ASPP has three dilations, not {len(dilations)}."
        self.pool_kernel_size, self.dropout = pool_kernel_size, dropout

        def conv(channels, kernel_size, **kwargs):
            return Conv2d(
                channels, out_channels, kernel_size=kernel_size, bias=norm == "", norm=get_norm(norm, out_channels),
                activation=deepcopy(activation), **kwargs,
            )

        def dilated(dilation):
            if not use_depthwise_separable_conv:
                return conv(in_channels, 3, padding=dilation, dilation=dilation)
            return DepthwiseSeparableConv2d(
                in_channels, out_channels, padding=dilation, dilation=dilation, norm1=norm,
                activation1=deepcopy(activation), norm2=norm, activation2=deepcopy(activation),
            )

        pool = nn.AdaptiveAvgPool2d(1) if pool_kernel_size is None else nn.AvgPool2d(pool_kernel_size, stride=1)
        pooled = nn.Sequential(pool, Conv2d(in_channels, out_channels, 1, activation=deepcopy(activation)))
        self.convs = nn.ModuleList([conv(in_channels, 1), *map(dilated, dilations), pooled])
        self.project = conv(5 * out_channels, 1)
        plain = [conv for conv in self.convs[:-1] if isinstance(conv, Conv2d)]  # separable ones initialised themselves
        for module in (*plain, pooled[-1], self.project):
            weight_init.c2_xavier_fill(module)

    def forward(self, x):
        size = x.shape[-2:]
        if self.pool_kernel_size is not None and any(a % b for a, b in zip(size, self.pool_kernel_size)):
            raise ValueError(f"pool_kernel_size {self.pool_kernel_size} does not divide the input's {tuple(size)}.")
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        out = self.project(torch.cat(branches, dim=1))
        return F.dropout(out, self.dropout, training=self.training) if self.dropout > 0 else out
