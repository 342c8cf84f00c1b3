"""Layers of a stack that share one weight, each with a low-rank one of its own beside it (LORS, arXiv:2403.04303).

The shared Linear is made, registered and initialised by whoever owns the stack; the layers below only refer to it, so
that it stands once in the state dict and once in the optimizer, and its gradients add up over the stack. Its default
initialisation in torch is Kaiming's, as the paper asks for. In its letters, x W with W (d, h), d is the input side.
"""
import math
from typing import Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank_d2.layers.linear import Linear, add_weight_gradient, linear
from lowrank_d2.layers.low_rank.algebra import LowRank, adapted_linear, merging_pays
from lowrank_d2.layers.low_rank.shared import SharedLinear, add_low_rank


class LowRankResidualLinear(nn.Module):
    """x W_shared + sum over k of (x B_k) A_k + bias: the paper's static form, equations 7 and 8.

    At the start A is zero, so all layers of a stack are the same function up to their biases. B is Kaiming's over its
    input side d: over its rank the first updates of A would be larger by d / rank, and the paper does not say which.

    Attributes:
        shared: the Linear of the stack, not a sub-module of this layer unless `own_shared` was called.
        B, A: (groups, d, rank) and (groups, rank, h); None where rank or groups is 0.
        bias: (h,) or None.
    """

    def __init__(self, shared: nn.Linear, rank: int, groups: int = 1, *, bias: Optional[bool] = None):
        """
        Args:
            shared: Linear of d inputs and h outputs. A bias of its own is added to this layer's.
            rank, groups: of the private part; the paper's r and K.
            bias: whether this layer has a bias; None: if the shared Linear has none.

        Raises:
            ValueError: a negative rank or number of groups.
        """
        super().__init__()
        self.__dict__["shared"] = shared  # a reference that nn.Module does not register
        self.in_features, self.out_features = shared.in_features, shared.out_features
        _add_factors(self, rank, groups, shared.weight, shared.in_features, shared.out_features)
        has_bias = shared.bias is None if bias is None else bias
        self.bias = nn.Parameter(shared.weight.new_empty(shared.out_features)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the private tensors alone."""
        if self.A is not None:
            _kaiming(self.B, fan_in=self.in_features)
            nn.init.zeros_(self.A)
        if self.bias is not None:
            _kaiming(self.bias, fan_in=self.in_features)

    def own_shared(self) -> None:
        """Makes this layer the owner of the shared Linear, for stacks that nobody else could own it for."""
        self.add_module("shared", self.__dict__.pop("shared"))

    @property
    def weight(self) -> Tensor:
        """(h, d): shared and private part in one, as a Linear has it."""
        weight = self.shared.weight
        return weight if self.A is None else LowRank(1.0).merged(weight, *self._factors())

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., h)."""
        bias, shared_bias = self.bias, self.shared.bias
        if bias is None:
            bias = shared_bias
        elif shared_bias is not None:
            bias = bias + shared_bias
        factors = () if self.A is None else self._factors()
        if factors and merging_pays(x.shape[:-1].numel(), self.in_features, self.out_features):
            return adapted_linear(x, self.shared.weight, bias, LowRank(1.0), *factors)
        return _multiplied(self.shared, x, bias, *factors)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """All groups side by side: (groups * rank, d) and (h, groups * rank)."""
        # A long contiguous side makes the products with B, and its gradient, several times faster.
        return self.B.transpose(1, 2).flatten(0, 1).contiguous(), self.A.permute(2, 0, 1).flatten(1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {_sizes(self)}"


class GeneratedKernel(nn.Module):
    """x W(q), where a Linear makes the matrix W(q) from every query q; no low-rank part, nothing shared."""

    def __init__(self, generator: nn.Linear, shape: Optional[tuple[int, int]] = None, *, left: bool = False):
        """
        Args:
            generator, shape, left: as `shared`, `shape` and `left` of `LowRankResidualKernel`.

        Raises:
            ValueError: the shape does not fit the generator.
        """
        super().__init__()
        self.generator = generator
        self.shape = _kernel_shape(generator, shape)
        self.left = left

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """As `LowRankResidualKernel.forward`."""
        return _multiply(x, self._rows(q), self.left)

    def kernel(self, q: Tensor) -> Tensor:
        """(..., dim) -> W(q) (..., d, h)."""
        return self._rows(q).mT if self.left else self._rows(q)

    def _rows(self, q: Tensor) -> Tensor:
        generator = self.generator
        return _matrices(linear(q, generator.weight, generator.bias), self.shape, self.left)


class LowRankResidualKernel(nn.Module):
    """x W(q), W(q) = shared(q) + sum over k of B_k E_k(q) A_k: the paper's adaptive form, equations 9 to 12.

    B E A is never formed: its thin factors, B E(q) and A, are multiplied right onto what the shared Linear made, which
    is there for every query anyhow. With n rows of x to a query that takes d h numbers of rank r, where x B and
    ((x B) E) A take n (d + h): no more in AdaMixer's channel mixing, a third in its spatial mixing, and x and its
    gradient are read once. At the start E(q) is zero for every query, so all layers of a stack are the same function.

    Attributes:
        shared: the Linear of the stack, not a sub-module of this layer.
        B, A: (groups, d, rank) and (groups, rank, h); None, as E, where rank or groups is 0.
        E: Linear whose output is read as (groups, rank, rank).
    """

    def __init__(
        self,
        shared: nn.Linear,
        rank: int,
        groups: int = 1,
        *,
        shape: Optional[tuple[int, int]] = None,
        left: bool = False,
    ):
        """
        Args:
            shared: Linear from a query to the d h numbers of a kernel.
            rank, groups: of the private part; the paper's r and K.
            shape: (d, h); None: as many rows as columns.
            left: the kernel multiplies from the left, y = W(q)^T x, and the generated numbers are the rows of W(q)^T
                (h, d), as those of AdaMixer's spatial mixing; without, those of W(q) (d, h).

        Raises:
            ValueError: a negative rank or number of groups, or a shape that does not fit the shared Linear.
        """
        super().__init__()
        self.__dict__["shared"] = shared  # a reference that nn.Module does not register
        self.shape = _kernel_shape(shared, shape)
        self.left = left
        _add_factors(self, rank, groups, shared.weight, *self.shape)
        like = {"device": shared.weight.device, "dtype": shared.weight.dtype}
        self.E = None if self.A is None else Linear(shared.in_features, groups * rank * rank, **like)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the private tensors: Kaiming's A and B, each over its input side, and no E."""
        if self.A is not None:
            _kaiming(self.B, fan_in=self.B.shape[1])
            _kaiming(self.A, fan_in=self.A.shape[1])
            nn.init.zeros_(self.E.weight)
            nn.init.zeros_(self.E.bias)

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """
        Args:
            x: (..., n, d); with `left` (..., d, n).
            q: (..., dim), the query of every x.

        Returns:
            (..., n, h); with `left` (..., h, n).
        """
        return _multiply(x, self._rows(q), self.left)

    def kernel(self, q: Tensor) -> Tensor:
        """(..., dim) -> W(q) (..., d, h)."""
        return self._rows(q).mT if self.left else self._rows(q)

    def _rows(self, q: Tensor) -> Tensor:
        """What multiplies x: W(q) (..., d, h), or with `left` W(q)^T (..., h, d)."""
        numbers = _multiplied(self.shared, q, self.shared.bias)
        if self.A is not None:
            groups, rank = self.A.shape[:2]
            core = self.E(q).reshape(-1, groups, rank, rank)
            outer, inner = self.B, self.A
            if self.left:  # W^T = shared^T + A^T E^T B^T
                outer, core, inner = self.A.mT, core.mT, self.B.mT
            numbers = _AddProduct.apply(numbers, *(factor.to(numbers.dtype) for factor in (outer, core, inner)))
        return _matrices(numbers, self.shape, self.left)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, left={self.left}, {_sizes(self)}"


class _AddProduct(torch.autograd.Function):
    """Adds to every matrix M, in place, sum over k of outer_k core_k inner_k, of which only outer_k core_k is formed.

    With one Function for the whole neither M nor its gradient, the two largest tensors here, is copied or added up; and
    as inner_k is the same for all queries, they meet it as the rows of one matrix.

    Args:
        numbers: (..., rows * columns), the matrices M, of n queries.
        outer: (groups, rows, rank).
        core: (n, groups, rank, rank).
        inner: (groups, rank, columns).
    """

    @staticmethod
    def forward(ctx, numbers, outer, core, inner):
        n, rows = len(core), outer.shape[1]
        matrices = numbers.view(n * rows, inner.shape[-1])
        thins = []
        for outer_k, core_k, inner_k in zip(outer, core.unbind(1), inner):
            thins.append(torch.bmm(outer_k.expand(n, -1, -1), core_k).flatten(0, 1))
            matrices.addmm_(thins[-1], inner_k)
        ctx.mark_dirty(numbers)
        ctx.save_for_backward(outer, core, inner, *thins)
        return numbers

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        outer, core, inner, *thins = ctx.saved_tensors
        (groups, rows, rank), n = outer.shape, len(core)
        matrices = grad.reshape(n * rows, inner.shape[-1])
        # All groups at once, so that the largest tensor here is read twice.
        grad_thins = linear(matrices, inner.flatten(0, 1)).view(n, rows, groups, rank)
        grad_inner = add_weight_gradient(None, [matrices], [torch.cat(thins, dim=1)]).t().reshape(inner.shape)
        grad_outer, grad_core = torch.empty_like(outer), torch.empty_like(core)
        for k, grad_thin in enumerate(grad_thins.unbind(2)):
            grad_outer[k] = torch.einsum("nar,nmr->am", grad_thin, core[:, k])
            grad_core[:, k] = torch.bmm(outer[k].t().expand(n, -1, -1), grad_thin)
        return grad, grad_outer, grad_core, grad_inner


def _add_factors(module: nn.Module, rank: int, groups: int, like: Tensor, d: int, h: int) -> None:
    if rank < 0 or groups < 0:
        raise ValueError(f"rank {rank} and groups {groups} must not be negative; 0 leaves the shared part alone.")
    empty = not rank * groups  # None, since an optimizer would wait in vain for gradients of tensors without elements
    module.B = None if empty else nn.Parameter(like.new_empty(groups, d, rank))
    module.A = None if empty else nn.Parameter(like.new_empty(groups, rank, h))


def _kernel_shape(generator: nn.Linear, shape: Optional[tuple[int, int]]) -> tuple[int, int]:
    numbers = generator.out_features
    if shape is None:
        shape = (math.isqrt(numbers),) * 2
    if shape[0] * shape[1] != numbers:
        size = f"{shape[0]} x {shape[1]}"
        raise ValueError(f"The Linear has {numbers} outputs, which are no kernel of {size}. Give `shape`.")
    return tuple(shape)


def _multiplied(shared: nn.Linear, x: Tensor, bias: Optional[Tensor], *factors: Tensor) -> Tensor:
    if isinstance(shared, SharedLinear):
        return shared.multiply(x, bias, *factors)
    return add_low_rank(linear(x, shared.weight, bias), x, *factors)


def _matrices(numbers: Tensor, shape: tuple[int, int], left: bool) -> Tensor:
    """What multiplies x, of a generator's output: W(q) (..., d, h), or with `left` W(q)^T (..., h, d)."""
    return numbers.unflatten(-1, shape[::-1] if left else shape)


def _multiply(x: Tensor, kernel: Tensor, left: bool) -> Tensor:
    return torch.matmul(kernel, x) if left else torch.matmul(x, kernel)


def _kaiming(tensor: Tensor, fan_in: int) -> None:
    """Kaiming's uniform distribution with a = sqrt(5), which is torch's for Linear: within +-1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound)


def _sizes(module: nn.Module) -> str:
    return "no private part" if module.A is None else f"rank={module.A.shape[1]}, groups={len(module.A)}"
