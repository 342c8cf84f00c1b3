"""The algebra of a linear map whose weight carries an update, y = x W'^T + b, in the cheapest order for its shapes.

An *update* says how W' comes from the frozen W and a few small factors: `LowRank` (W + s B A), `Hadamard`
(W + s (A1 B1) o (A2 B2)), `Kronecker` (W + s w1 (x) w2), `Magnitude` (rows of W + s B A at given lengths).

Forward, *merged*: W' is formed once per call, and the layer costs what the frozen one costs; it pays for many tokens.
*Branched*: the thin products run beside the frozen one. Backward, *thin*: gradients of the factors from products of
width rank; *dense*: through dW' = G^T X, which costs as much as half the frozen layer's two products but one pass.
Whatever the order, nothing but x and the parameters is kept between the two passes.
"""
import contextlib
from dataclasses import dataclass
from typing import Iterator, Optional, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank_d2.layers.linear import linear

# The limits below were measured on one CPU thread for widths 256 to 1024 (docs/benchmarks/lowrank.md).
_TOKENS_PER_WIDTH_TO_MERGE = 1.5  # from here on the skinny products lose against one dense merge
_THIN_SHARE = 0.85  # of the dense order's multiplications: below it, products of width rank are cheaper
_THIN_SHARE_KRONECKER = 0.4  # its products are shorter
_CHUNK = 512  # tokens whose x and gradient stay in a core's cache while several thin products read them


class Update:
    """How W' comes from W; the orders are the same function of the same factors."""

    def merged(self, weight: Tensor, *factors: Tensor) -> Tensor:
        """W' (out, in) in the type of `weight` (out, in); differentiable in all."""
        raise NotImplementedError

    def branch(self, x: Tensor, *factors: Tensor) -> Optional[tuple[Tensor, Tensor, float]]:
        """(h, m, s) with x (W' - W)^T = s h m, if that is cheaper than merging for so few tokens x (n, in)."""
        return None

    def branch_back(self, grad: Tensor, *factors: Tensor) -> Optional[tuple[Tensor, Tensor, float]]:
        """(h, m, s) with grad (W' - W) = s h m for grad (n, out); None exactly where `branch` is."""
        return None

    def thin(self, grad: Tensor, x: Tensor, *factors: Tensor) -> Optional[tuple[Tensor, ...]]:
        """Gradients of the factors without forming dW' (out, in), if that is cheaper; grad (n, out), x (n, in)."""
        return None


def adapted_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], update: Update, *factors: Tensor) -> Tensor:
    """x W'^T + bias, with W' = update.merged(weight, *factors).

    Under autocast the products run in its type, as torch's own linear does; the merge in the parameters' type.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.
        factors: as the update's class says.

    Returns:
        (..., out). Differentiable once in every tensor given.
    """
    tokens = x.to(_compute_dtype(x)).reshape(-1, x.shape[-1])
    function = _AdaptedLinear.apply if torch.is_grad_enabled() else _project
    return function(tokens, weight, bias, update, *factors).reshape(*x.shape[:-1], weight.shape[0])


@dataclass(frozen=True)
class LowRank(Update):
    """W + scale * up @ down; factors: down (rank, in), called A in the papers, and up (out, rank), called B."""

    scale: float

    def merged(self, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        with _without_autocast(weight):
            wide = _wide(weight, up)
            return torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=self.scale).to(weight.dtype)

    def branch(self, x: Tensor, down: Tensor, up: Tensor) -> Optional[tuple[Tensor, Tensor, float]]:
        if merging_pays(len(x), down.shape[1], len(up)):
            return None
        return x @ down.to(x.dtype).t(), up.to(x.dtype).t(), self.scale

    def branch_back(self, grad: Tensor, down: Tensor, up: Tensor) -> Optional[tuple[Tensor, Tensor, float]]:
        if merging_pays(len(grad), down.shape[1], len(up)):
            return None
        return grad @ up.to(grad.dtype), down.to(grad.dtype), self.scale

    def thin(self, grad: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Optional[tuple[Tensor, ...]]:
        if not thin_pays(len(down), down.shape[1], len(up)):
            return None
        a, b = down.to(x.dtype), up.to(x.dtype)
        grad_down, grad_up = torch.zeros_like(a), torch.zeros_like(b).t().contiguous()
        for g, t in _chunks(grad, x):
            grad_down.addmm_((g @ b).t(), t, alpha=self.scale)
            # (x A^T)^T G is twice as fast as G^T (x A^T): the long side stays contiguous.
            grad_up.addmm_((t @ a.t()).t(), g, alpha=self.scale)
        return grad_down, grad_up.t()


@dataclass(frozen=True)
class Hadamard(Update):
    """W + scale * (a1 @ b1) * (a2 @ b2); factors: a1 (out, rank), b1 (rank, in), a2 (out, rank), b2 (rank, in)."""

    scale: float

    def merged(self, weight: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        with _without_autocast(weight):
            wide = _wide(weight, a1)
            first, second = a1.to(wide) @ b1.to(wide), a2.to(wide) @ b2.to(wide)
            return torch.addcmul(weight.to(wide), first, second, value=self.scale).to(weight.dtype)


@dataclass(frozen=True)
class Kronecker(Update):
    """W + scale * kron(w1, w2), row by row times `rows` (out,) where it is given.

    Factors: w1 (o1, i1), and w2 (o2, i2) either whole or as a (o2, rank) and b (rank, i2) with w2 = a @ b.
    """

    scale: float
    rows: Optional[Tensor] = None

    def merged(self, weight: Tensor, w1: Tensor, *w2: Tensor) -> Tensor:
        with _without_autocast(weight):
            wide = _wide(weight, w1)
            first, second = w1.to(wide), w2[0].to(wide) if len(w2) == 1 else w2[0].to(wide) @ w2[1].to(wide)
            blocks = weight.to(wide).view(len(first), len(second), first.shape[1], second.shape[1])
            if self.rows is not None:
                first = first[:, None] * self.rows.to(wide).view(len(first), len(second), 1)
            else:
                first = first[:, None]
            whole = torch.addcmul(blocks, first[..., None], second[None, :, None], value=self.scale)
            return whole.reshape(weight.shape).to(weight.dtype)

    def thin(self, grad: Tensor, x: Tensor, w1: Tensor, *w2: Tensor) -> Optional[tuple[Tensor, ...]]:
        if len(w2) == 1:
            return None
        (o1, i1), (a, b) = w1.shape, (factor.to(x.dtype) for factor in w2)
        (o2, rank), i2 = a.shape, b.shape[1]
        products = 2 * rank * (o1 * o2 + i1 * i2) + 3 * rank**2 * o1 * i1
        if products >= _THIN_SHARE_KRONECKER * o1 * o2 * i1 * i2:
            return None
        if self.rows is not None:
            grad = grad * self.rows.to(grad.dtype)
        g, t = grad.reshape(-1, o2), x.reshape(-1, i2)
        u = (g @ a).view(len(x), o1 * rank)  # a token's o1 output blocks, each seen through a
        v = (t @ b.t()).view(len(x), i1 * rank)
        grad_w1 = (u.t() @ v).view(o1, rank, i1, rank).diagonal(dim1=1, dim2=3).sum(-1)
        inner = torch.kron(w1.to(x.dtype), torch.eye(rank, dtype=x.dtype, device=x.device))  # (o1 rank, i1 rank)
        grad_a = ((v @ inner.t()).view(-1, rank).t() @ g).t()
        grad_b = (u @ inner).view(-1, rank).t() @ t
        return tuple(self.scale * gradient for gradient in (grad_w1, grad_a, grad_b))


@dataclass(frozen=True)
class Magnitude(Update):
    """Rows of W + scale * up @ down, brought to the lengths `magnitude`; factors: down, up, magnitude (out,).

    The division by the present length is no part of the derivative, as DoRA defines it (its section 4.3). A row of
    length 0, which has no direction, is left as it is.
    """

    scale: float

    def merged(self, weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor) -> Tensor:
        with _without_autocast(weight):
            direction = LowRank(self.scale).merged(weight.to(_wide(weight, up)), down, up)
            length = direction.detach().norm(dim=1)
            there = length > 0
            ratio = torch.where(there, magnitude.to(length.dtype) / torch.where(there, length, 1), 1)
            return (ratio[:, None] * direction).to(weight.dtype)


def khatri_rao(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """down (rank^2, in) and up (out, rank^2) with up @ down = (a1 @ b1) * (a2 @ b2); shapes as in `Hadamard`."""
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None] * b2[None]).flatten(0, 1)
    return down, up


def merging_pays(tokens: int, in_features: int, out_features: int) -> bool:
    """Whether forming the merged weight is cheaper than running the factors on every token."""
    return tokens >= _TOKENS_PER_WIDTH_TO_MERGE * max(in_features, out_features)


def thin_pays(rank: int, in_features: int, out_features: int) -> bool:
    """Whether the gradients of two factors of this rank are cheaper without the dense one of the weight."""
    return 2 * rank * (in_features + out_features) < _THIN_SHARE * in_features * out_features


def _project(x: Tensor, weight: Tensor, bias: Optional[Tensor], update: Update, *factors: Tensor) -> Tensor:
    """`adapted_linear` for tokens (n, in), in the type of `x`."""
    with _without_autocast(x):
        bias = None if bias is None else bias.to(x.dtype)
        branch = update.branch(x, *factors)
        if branch is None:
            return linear(x, update.merged(weight, *factors).to(x.dtype), bias)
        hidden, up, scale = branch
        return linear(x, weight.to(x.dtype), bias).addmm_(hidden, up, alpha=scale)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, update, *factors):
        return _project(x, weight, bias, update, *factors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.update, *factors = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, *factors = ctx.saved_tensors
        need_x, need_weight, need_bias, _, *need_factors = ctx.needs_input_grad
        grad_x = grad_bias = None
        grads: Sequence[Optional[Tensor]] = [None] * (1 + len(factors))  # of the weight and the factors
        with _without_autocast(grad):
            thin = None if need_weight else ctx.update.thin(grad, x, *factors)
            branch = ctx.update.branch_back(grad, *factors) if need_x else None
            merged, leaves = None, []
            if (need_x and branch is None) or (thin is None and (need_weight or any(need_factors))):
                merged, leaves = _merged_with_graph(ctx, weight, factors)
            if thin is not None:
                grads = [None, *(g.to(f.dtype) if need else None for g, f, need in zip(thin, factors, need_factors))]
            elif need_weight or any(need_factors):
                grads = _through_dense(merged, leaves, grad.t() @ x)
            if need_bias:
                grad_bias = grad.sum(0).to(ctx.bias_dtype)
            if branch is not None:
                hidden, down, scale = branch
                grad_x = linear(grad, weight.to(grad.dtype).t()).addmm_(hidden, down, alpha=scale)
            elif need_x:
                grad_x = linear(grad, merged.detach().to(grad.dtype).t())
        return grad_x, grads[0], grad_bias, None, *grads[1:]


def _merged_with_graph(ctx, weight: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """W' and the leaves (weight, factors) that it was made of, those that need a gradient ready to get one."""
    need = (ctx.needs_input_grad[1], *ctx.needs_input_grad[4:])
    leaves = [leaf.detach().requires_grad_(needs) for leaf, needs in zip((weight, *factors), need)]
    with torch.enable_grad():
        return ctx.update.merged(*leaves), leaves


def _through_dense(merged: Tensor, leaves: Sequence[Tensor], grad: Tensor) -> list[Optional[Tensor]]:
    """Gradients of the leaves that need one, from dW' (out, in)."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(merged, wanted, grad.to(merged.dtype)))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _chunks(grad: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors in pieces of a CPU's cache; whole where sums over many pieces would lose digits."""
    whole = x.device.type != "cpu" or x.dtype in (torch.float16, torch.bfloat16)
    size = max(len(x), 1) if whole else _CHUNK
    return zip(grad.split(size), x.split(size))


def _wide(weight: Tensor, factor: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, factor.dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if _autocasting(x) else x.dtype


def _autocasting(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.autocast(x.device.type, enabled=False) if _autocasting(x) else contextlib.nullcontext()
