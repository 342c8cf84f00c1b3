"""Convolutions of the feature pyramid that keep little for the backward pass, where their maps are a model's largest."""
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor
from torch.autograd.function import once_differentiable


class PyramidConv(Conv2d):
    """Detectron2's Conv2d. While it is frozen it does not keep its input, which only the weight's gradient would need."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        weight, bias = self.weight, self.bias
        if not _is_recorded(x) or any(p.requires_grad for p in (weight, bias) if p is not None):
            return super().forward(x)
        x = _FrozenConvolution.apply(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def relu_(x: Tensor) -> Tensor:
    """ReLU in place, which keeps a byte an element for the backward pass, whether it was off, not the element."""
    return _ReLU.apply(x) if _is_recorded(x) else F.relu_(x)


def _is_recorded(x: Tensor) -> bool:
    """For a backward pass, in the tensor's own precision and nowhere else."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(x.device.type):
        return False
    return torch.is_grad_enabled() and x.requires_grad


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, *options):
        ctx.save_for_backward(weight)
        ctx.options, ctx.shape, ctx.format = options, x.shape, torch.contiguous_format
        if x.is_contiguous(memory_format=torch.channels_last):
            ctx.format = torch.channels_last
        return F.conv2d(x, weight, bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weight,), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.options
        x = grad  # stands for the input, of which only shape and layout are read
        if x.shape != ctx.shape or not x.is_contiguous(memory_format=ctx.format):
            x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.format)
        options = stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        grad_x, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *options)
        return grad_x, *[None] * 6


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        off = x <= 0
        ctx.save_for_backward(off)
        ctx.mark_dirty(x)
        return x.relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (off,) = ctx.saved_tensors
        return torch.where(off, grad.new_zeros(()), grad)
