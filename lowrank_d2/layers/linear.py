"""Linear layers that run at the speed of convolutions on every x86 CPU.

torch multiplies float32 matrices by MKL, which on AMD's processors does not use their widest instructions, but computes
convolutions by oneDNN, which does: there a convolution of 1 x 1 is more than twice as fast as the same linear layer,
forward and backward (docs/benchmarks/mask_dino.md).
"""
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Multiplications from which a convolution's larger overhead is repaid.
_WORTHWHILE = 2**24
# Numbers of a weight's gradient that are made at a time, so that they and what they are made of stay in the cache.
_BLOCK = 2**17


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


def add_weight_gradient(total: Optional[Tensor], grads: Sequence[Tensor], xs: Sequence[Tensor]) -> Tensor:
    """The sum of grad^T x over several uses of a weight, as fast: the gradient of `linear`'s weight.

    Large uses are one product by oneDNN, made block by block: side by side in memory the rows of all uses would be several
    times the gradient, and one product for each use would pass over the gradient as often as there are uses.

    Args:
        total: (out, in), to which the sum is added in place; None: a new one.
        grads: (tokens, out) of every use.
        xs: (tokens, in) of every use.

    Returns:
        (out, in)
    """
    rows, columns = grads[0].shape[1], xs[0].shape[1]
    work = sum(map(len, xs)) * rows * columns
    if work < _WORTHWHILE or torch.get_num_threads() == 1 or not _by_onednn(*grads, *xs):
        for grad, x in zip(grads, xs):
            total = grad.t() @ x if total is None else total.addmm_(grad.t(), x)
        return total
    if total is None and len(xs) == 1:
        return _product_of_tokens(grads[0], xs[0])
    begun = total is not None
    total = total if begun else xs[0].new_empty(rows, columns)
    tall = rows > columns
    whole = _stacked(xs if tall else grads)
    step = max(1, _BLOCK // min(rows, columns))
    for start in range(0, max(rows, columns), step):
        block = slice(start, start + step)
        part = _stacked([x[:, block] for x in (grads if tall else xs)])
        found = _product_of_tokens(part, whole) if tall else _product_of_tokens(whole, part)
        place = total[block] if tall else total[:, block]
        place.add_(found) if begun else place.copy_(found)
    return total


def _stacked(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(xs)) if len(xs) > 1 else xs[0]


def _product_of_tokens(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x, (tokens, out) and (tokens, in) -> (out, in), as the weight's gradient of a convolution."""
    weight = x.new_empty((grad.shape[1], x.shape[1], 1, 1))  # only its shape is read
    options = (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False)
    return torch.ops.aten.convolution_backward(_row(grad), _row(x), weight, None, *options)[1][:, :, 0, 0]


def _row(x: Tensor) -> Tensor:
    """One row of pixels, channels last: the tokens do not move in memory. (..., C) -> (1, C, 1, tokens)."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _convolved(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return _tokens(_convolution(_row(x), weight[:, :, None, None], bias), x.shape[:-1])


def _tokens(y: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse of `_row`: (1, C, 1, tokens) -> (*shape, C)."""
    # Not a view for autograd, which would forbid an in-place ReLU on what a Function of its own returns.
    return torch.ops.aten._unsafe_view(y.permute(0, 2, 3, 1).contiguous(), [*shape, y.shape[1]])


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


class PackedWeight:
    """A weight (out, in) that is used several times and does not change in between; for code without autograd.

    oneDNN multiplies a weight in an order of its own, into which it otherwise brings it at every use: with 200 tokens and
    16 MB that is a quarter of the time. Here it is brought there once; the copies live as long as this object.
    """

    def __init__(self, weight: Tensor):
        self.weight = weight.detach()
        self._for_linear: Optional[Tensor] = None
        self._for_input_gradient: Optional[Tensor] = None

    def linear(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """As the function `linear`."""
        if not _packs(x, self.weight):
            return linear(x, self.weight, bias)
        row = _row(x)
        if self._for_linear is None:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self._for_linear = reorder(self.weight[:, :, None, None], [0, 0], [1, 1], [1, 1], 1, row.shape)
        options = [0, 0], [1, 1], [1, 1], 1, "none", [], ""
        return _tokens(torch.ops.mkldnn._convolution_pointwise(row, self._for_linear, bias, *options), x.shape[:-1])

    def input_gradient(self, grad: Tensor) -> Tensor:
        """As the function `input_gradient`."""
        if not _packs(grad, self.weight.t()):
            return input_gradient(grad, self.weight)
        row = _row(grad)  # a transposed convolution has the weight as it is here
        if self._for_input_gradient is None:
            reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
            options = [0, 0], [0, 0], [1, 1], [1, 1], 1, row.shape
            self._for_input_gradient = reorder(self.weight[:, :, None, None], *options)
        options = [0, 0], [0, 0], [1, 1], [1, 1], 1, "none", [], ""
        grad_x = torch.ops.mkldnn._convolution_transpose_pointwise(row, self._for_input_gradient, None, *options)
        return _tokens(grad_x, grad.shape[:-1])


def _packs(x: Tensor, weight: Tensor) -> bool:
    # What torch's compiler does with the weights of a frozen model; nothing else of torch's leads there.
    return _by_convolution(x, weight) and hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise")


class Linear(nn.Linear):
    """torch's Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def _by_convolution(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * len(weight) >= _WORTHWHILE and _by_onednn(x, weight)


def _by_onednn(*tensors: Tensor) -> bool:
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )
