"""A Linear that all layers of a stack use, whose gradient is added up by the products that make it.

Autograd gives each use of a weight a gradient of its own, as large as the weight, and adds them. Where a stack says that
its uses belong `together`, they are multiplied onto one gradient instead, several uses in one product where each has few
tokens, and the weight gets it after the last. All of them multiply a copy of the weight that was packed once.
"""
import contextlib
from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank_d2.layers.linear import Linear, PackedWeight, add_weight_gradient, linear

# Tokens from which a product is not made faster by more of them.
_TOGETHER = 1024


class SharedLinear(Linear):
    """A Linear to be given to `LowRankResidualLinear` and `LowRankResidualKernel`."""

    _common: Optional[tuple[Tensor, "_Common"]] = None  # while `together` is in force

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Optional[Tensor], *factors: Tensor) -> Tensor:
        """x (..., in) times the weight, plus what belongs to the one use.

        Args:
            bias: (out,) or None.
            factors: none, or down (rank, in) and up (out, rank), for (x down^T) up^T beside it.
        """
        if self._common is None or x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return add_low_rank(linear(x, self.weight, bias), x, *factors)
        return _Use.apply(x, bias, *self._common, *factors)


def add_low_rank(y: Tensor, x: Tensor, *factors: Tensor) -> Tensor:
    """y + (x down^T) up^T; factors: none, or down (rank, in) and up (out, rank)."""
    if not factors:
        return y
    down, up = (factor.to(y.dtype) for factor in factors)
    hidden = linear(x, down).reshape(-1, len(down))
    return torch.addmm(y.reshape(-1, len(up)), hidden, up.t()).view(y.shape)


@contextlib.contextmanager
def together(owner: nn.Module) -> Iterator[None]:
    """Within it, each SharedLinear in `owner` is packed once, and all uses make one gradient of its weight.

    The weights must not change within it. What is computed is differentiable once.
    """
    plain = torch.compiler.is_compiling() or torch.jit.is_tracing()
    linears = [] if plain else [m for m in owner.modules() if isinstance(m, SharedLinear)]
    for shared in linears:
        common = _Common(shared.weight)
        shared._common = _Source.apply(shared.weight, common), common
    try:
        yield
    finally:
        for shared in linears:
            shared._common[1].packed = PackedWeight(shared.weight)  # the backward pass packs in another order
            del shared._common


class _Common:
    """What the uses have in common.

    Attributes:
        packed: the weight.
        total: what the uses have added up in the backward pass that is under way.
        waiting: few tokens, which wait for those of other uses.
    """

    def __init__(self, weight: Tensor):
        self.packed = PackedWeight(weight)
        self.total: Optional[Tensor] = None
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.backward_pass = -1

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Adds grad^T x of n tokens, grad (n, out) and x (n, in)."""
        # A pass that did not ask for this weight leaves its sum behind.
        current = torch._C._current_graph_task_id()
        if self.backward_pass != current:
            self.total, self.waiting, self.backward_pass = None, [], current
        self.waiting.append((grad, x))
        if sum(len(x) for _, x in self.waiting) >= _TOGETHER:
            self._add_waiting()

    def take(self) -> Optional[Tensor]:
        """The sum, which is forgotten, as is the packed weight."""
        self._add_waiting()
        total, self.total = self.total, None
        self.packed = PackedWeight(self.packed.weight)
        return total

    def _add_waiting(self) -> None:
        if self.waiting:
            self.total = add_weight_gradient(self.total, *zip(*self.waiting))
            self.waiting = []


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
    """x weight^T + bias + (x down^T) up^T, which gives the weight's gradient to the sum and none to autograd."""

    @staticmethod
    def forward(ctx, x, bias, weight, common, down=None, up=None):
        ctx.common = common
        tokens, hidden = x.reshape(-1, x.shape[-1]), None
        y = common.packed.linear(tokens, bias)
        if down is not None:
            hidden = linear(tokens, down)
            y.addmm_(hidden, up.t())
        ctx.save_for_backward(x, weight, down, up, hidden)
        # Not a view for autograd, which would forbid its users to change it in place.
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(weight)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, down, up, hidden = ctx.saved_tensors
        need_x, need_bias, need_weight, *_ = ctx.needs_input_grad
        tokens, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if need_weight:
            ctx.common.add(grad, tokens)
        grad_x = ctx.common.packed.input_gradient(grad) if need_x else None
        grad_factors = None, None
        if down is not None:
            grad_hidden = grad @ up
            grad_factors = add_weight_gradient(None, [grad_hidden], [tokens]), grad.t() @ hidden
            if need_x:  # onto the large part, which autograd would do in memory of its own
                grad_x.addmm_(grad_hidden, down)
        grad_x = grad_x.view(x.shape) if need_x else None
        return grad_x, grad.sum(0) if need_bias else None, None, None, *grad_factors
