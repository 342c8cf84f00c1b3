"""Linear layers that run at the speed of convolutions on every x86 CPU.

torch multiplies float32 matrices by MKL, which on AMD's processors does not use their widest instructions, but computes
convolutions by oneDNN, which does: there a convolution of 1 x 1 is more than twice as fast as the same linear layer,
forward and backward (docs/benchmarks/mask_dino.md).
"""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Multiplications from which a convolution's larger overhead is repaid.
_WORTHWHILE = 2**24


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x weight^T + bias, as `torch.nn.functional.linear`, but for large float32 products on the CPU by oneDNN.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out)
    """
    if not _by_convolution(x, weight):
        return F.linear(x, weight, bias)
    if x.requires_grad and not weight.requires_grad and torch.is_grad_enabled():
        return _WithFrozenWeight.apply(x, weight, bias)
    return _convolved(x, weight, bias)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """grad weight: the gradient of `linear`'s x, as fast. `linear(grad, weight.t())` would first turn the weight, which for
    few tokens takes longer than the product.

    Args:
        grad: (..., out).
        weight: (out, in).

    Returns:
        (..., in)
    """
    if not _by_convolution(grad, weight.t()):
        return grad @ weight
    if torch.get_num_threads() == 1:  # torch gives the operator below to MKL then
        return _convolved(grad, weight.t(), None)
    x = grad.new_empty((grad.numel() // grad.shape[-1], weight.shape[1]))  # only its shape is read
    options = (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False)
    grad_x = torch.ops.aten.convolution_backward(_row(grad), _row(x), weight[:, :, None, None], None, *options)[0]
    return grad_x.permute(0, 2, 3, 1).reshape(*grad.shape[:-1], weight.shape[1])


def _row(x: Tensor) -> Tensor:
    """One row of pixels, channels last: the tokens do not move in memory. (..., C) -> (1, C, 1, tokens)."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _convolved(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    y = _convolution(_row(x), weight[:, :, None, None], bias)
    # Not a view for autograd, which would forbid an in-place ReLU on what a Function of its own returns.
    return torch.ops.aten._unsafe_view(y.permute(0, 2, 3, 1).contiguous(), [*x.shape[:-1], len(weight)])


def _convolution(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    if torch.get_num_threads() > 1:
        return F.conv2d(x, weight, bias)
    # With one thread conv2d gives such a convolution to MKL as well.
    return torch.ops.aten.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)


class _WithFrozenWeight(torch.autograd.Function):
    """A convolution keeps x for the gradient of its weight, wanted or not; this keeps the weight alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return _convolved(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        return input_gradient(grad, weight), None, grad_bias


class Linear(nn.Linear):
    """torch's Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def _by_convolution(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _WORTHWHILE
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )
