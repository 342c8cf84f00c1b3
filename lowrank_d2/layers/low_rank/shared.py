"""A Linear that all layers of a stack use, whose gradient is added up by the products that make it.

Autograd gives each use of a weight a gradient of its own, as large as the weight, and adds them. Where a stack says that
its uses belong `together`, every use multiplies onto one gradient instead, and the weight gets it after the last.
"""
import contextlib
from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank_d2.layers.linear import Linear, input_gradient, linear


class SharedLinear(Linear):
    """A Linear to be given to `LowRankResidualLinear` and `LowRankResidualKernel`."""

    _common: Optional[tuple[Tensor, "_Sum"]] = None  # while `together` is in force

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """x (..., in) times the weight, plus a bias (out,) of whoever uses it."""
        if self._common is None or x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return linear(x, self.weight, bias)
        return _Use.apply(x, bias, *self._common)


@contextlib.contextmanager
def together(owner: nn.Module) -> Iterator[None]:
    """Within it, all uses of each SharedLinear in `owner` make one gradient of its weight; differentiable once."""
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    linears = [m for m in owner.modules() if isinstance(m, SharedLinear) and recorded and m.weight.requires_grad]
    for shared in linears:
        common = _Sum()
        shared._common = _Source.apply(shared.weight, common), common
    try:
        yield
    finally:
        for shared in linears:
            del shared._common


class _Sum:
    """What the uses have added up in the backward pass that is under way."""

    def __init__(self):
        self.total: Optional[Tensor] = None
        self.backward_pass = -1

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Adds grad^T x of n tokens, grad (n, out) and x (n, in)."""
        # A pass that did not ask for this weight leaves its sum behind.
        current = torch._C._current_graph_task_id()
        if self.total is None or self.backward_pass != current:
            self.total, self.backward_pass = grad.t() @ x, current
        else:
            self.total.addmm_(grad.t(), x)

    def take(self) -> Optional[Tensor]:
        total, self.total = self.total, None
        return total


class _Source(torch.autograd.Function):
    """The weight; its backward pass comes when all uses have had theirs."""

    @staticmethod
    def forward(ctx, weight, common):
        ctx.common = common
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        return ctx.common.take(), None


class _Use(torch.autograd.Function):
    """x weight^T + bias, which gives the weight's gradient to the sum and none to autograd."""

    @staticmethod
    def forward(ctx, x, bias, weight, common):
        ctx.common = common
        ctx.save_for_backward(x, weight)
        y = linear(x.reshape(-1, x.shape[-1]), weight, bias)
        # Not a view for autograd, which would forbid its users to change it in place.
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(weight)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        tokens = grad.reshape(-1, grad.shape[-1])
        ctx.common.add(tokens, x.reshape(-1, x.shape[-1]))
        grad_x = input_gradient(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, tokens.sum(0) if ctx.needs_input_grad[1] else None, None, None
