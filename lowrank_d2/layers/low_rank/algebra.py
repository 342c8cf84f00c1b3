"""The algebra of a linear map whose weight carries an update, y = x W'^T + b, in the cheapest order for its shapes.

An *update* says how W' comes from the frozen W and a few small factors: `LowRank` (W + s B A), `Hadamard`
(W + s (A1 B1) o (A2 B2)), `Kronecker` (W + s w1 (x) w2), `Magnitude` (rows of W + s B A at given lengths).

Forward, *merged*: W' is formed once per call, and the layer costs what the frozen one costs; it pays for many tokens.
*Branched*: the thin products run beside the frozen one. Backward, *thin*: gradients of the factors from products of
width rank; *dense*: through dW' = G^T X, which costs half of the frozen layer's two products. Between the passes the
merged order keeps nothing but x and the parameters, the branched one x A^T, a few numbers a token. `Magnitude` alone
keeps outputs: it is a low-rank map and a scaling of what that gives.
"""
import contextlib
from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lowrank_d2.layers.linear import input_gradient, linear

# The limits below were measured on one CPU thread for widths 256 to 1024 (docs/benchmarks/lowrank.md).
_TOKENS_PER_WIDTH_TO_MERGE = 1.2  # from here on the skinny products lose against one dense merge
_THIN_SHARE = 0.85  # of the dense order's multiplications: below it, products of width rank are cheaper
_THIN_SHARE_KRONECKER = 0.4  # its products are shorter
_CHUNK = 512  # tokens whose x and gradient stay in a core's cache while several thin products read them


Gradients = tuple[Optional[Tensor], tuple[Tensor, ...]]


class Update:
    """How W' comes from W; the orders are the same function of the same factors."""

    def merged(self, weight: Tensor, *factors: Tensor) -> Tensor:
        """W' (out, in) in the type of `weight` (out, in); differentiable in all."""
        raise NotImplementedError

    def branched(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], *factors: Tensor) -> Optional[Tensor]:
        """x W'^T + bias without forming W' for it, where that is cheaper; x (n, in)."""
        return None

    def thin(self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, *factors: Tensor) -> Optional[Gradients]:
        """Gradients of x (n, in), if `need_x`, and of the factors without dW' (out, in), if that is cheaper."""
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
    tokens = x.to(_compute_dtype(x)) if x.dim() == 2 else x.to(_compute_dtype(x)).reshape(-1, x.shape[-1])
    y = update.branched(tokens, weight, bias, *factors)
    if y is None:
        y = _Merged.apply(tokens, weight, bias, update, *factors)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], weight.shape[0])


@dataclass(frozen=True)
class LowRank(Update):
    """W + scale * up @ down; factors: down (rank, in), called A in the papers, and up (out, rank), called B."""

    scale: float

    def merged(self, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        with _without_autocast(weight):
            wide = _wide(weight, up)
            return torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=self.scale).to(weight.dtype)

    def branched(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], down: Tensor, up: Tensor
    ) -> Optional[Tensor]:
        if merging_pays(len(x), down.shape[1], len(up)):
            return None
        # So short that calls from Python would cost as much as they save: torch's own backward pass, which keeps h.
        frozen = linear(x, _typed(weight, x), None if bias is None else _typed(bias, x))
        hidden = F.linear(x, _typed(down, x))
        return torch.addmm(frozen, hidden, _typed(up, x).t(), alpha=self.scale)

    def thin(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, down: Tensor, up: Tensor
    ) -> Optional[Gradients]:
        if not thin_pays(len(down), down.shape[1], len(up)):
            return None
        grad_x = _product(grad, self.merged(weight, down, up)) if need_x else None
        # (rank, in) and (rank, out): products with a long contiguous side are twice as fast.
        a, b = down.to(x.dtype), up.to(x.dtype).t().contiguous()
        return grad_x, _thin_gradients(grad, x, a, b, self.scale)


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

    def thin(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, w1: Tensor, *w2: Tensor
    ) -> Optional[Gradients]:
        if len(w2) == 1:
            return None
        (o1, i1), (a, b) = w1.shape, (factor.to(x.dtype) for factor in w2)
        (o2, rank), i2 = a.shape, b.shape[1]
        products = 2 * rank * (o1 * o2 + i1 * i2) + 3 * rank**2 * o1 * i1
        if products >= _THIN_SHARE_KRONECKER * o1 * o2 * i1 * i2:
            return None
        grad_x = _product(grad, self.merged(weight, w1, *w2)) if need_x else None
        if self.rows is not None:
            grad = grad * self.rows.to(grad.dtype)
        g, t = grad.reshape(-1, o2), x.reshape(-1, i2)
        u = F.linear(g, a.t().contiguous()).view(len(x), o1 * rank)  # a token's o1 output blocks, each seen through a
        v = F.linear(t, b).view(len(x), i1 * rank)
        grad_w1 = (u.t() @ v).view(o1, rank, i1, rank).diagonal(dim1=1, dim2=3).sum(-1)
        inner = torch.kron(w1.to(x.dtype), torch.eye(rank, dtype=x.dtype, device=x.device))  # (o1 rank, i1 rank)
        grad_a = ((v @ inner.t()).view(-1, rank).t() @ g).t()
        grad_b = (u @ inner).view(-1, rank).t() @ t
        return grad_x, tuple(self.scale * gradient for gradient in (grad_w1, grad_a, grad_b))


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
            return (_ratio(direction, magnitude)[:, None] * direction).to(weight.dtype)

    def branched(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], down: Tensor, up: Tensor, magnitude: Tensor
    ) -> Optional[Tensor]:
        # Scaling the outputs keeps them once more, but the lengths' gradient would need all of dW' without.
        plain = LowRank(self.scale)
        y = adapted_linear(x, weight, None, plain, down, up)
        with torch.no_grad():
            direction = plain.merged(weight.to(_wide(weight, up)), down, up)
        ratio = _ratio(direction, magnitude).to(y.dtype)
        return y * ratio if bias is None else torch.addcmul(bias.to(y.dtype), y, ratio)


def _ratio(direction: Tensor, magnitude: Tensor) -> Tensor:
    """(out,): what brings the rows of `direction` to their lengths; 1 for a row without one."""
    length = direction.detach().norm(dim=1)
    there = length > 0
    return torch.where(there, magnitude.to(length.dtype) / torch.where(there, length, 1), 1)


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


class _Merged(torch.autograd.Function):
    """The merged order; between the two passes it keeps x and the parameters alone."""

    @staticmethod
    def forward(x, weight, bias, update, *factors):
        with _without_autocast(x):
            return linear(x, update.merged(weight, *factors).to(x.dtype), None if bias is None else bias.to(x.dtype))

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
        grads: Sequence[Optional[Tensor]] = [None] * (1 + len(factors))  # of the weight and the factors
        with _without_autocast(grad):
            grad_bias = grad.sum(0).to(ctx.bias_dtype) if need_bias else None
            thin = None
            if any(need_factors) and not need_weight:
                thin = ctx.update.thin(grad, x, weight, need_x, *factors)
            if thin is not None:
                grad_x, found = thin
                grads[1:] = [g.to(f.dtype) if need else None for g, f, need in zip(found, factors, need_factors)]
            else:
                merged, leaves = _merged_with_graph(ctx, weight, factors)
                grad_x = _product(grad, merged.detach()) if need_x else None
                if merged.requires_grad:
                    grads = _through_dense(merged, leaves, grad.t() @ x)
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


def _thin_gradients(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of down (rank, in) and up (out, rank), given as a = down and b = up^T.

    Both products of a piece of x and grad follow each other while it is in the CPU's cache; in types where a sum over
    many pieces would lose digits, and on other devices, there is one piece.
    """
    whole = x.device.type != "cpu" or x.dtype in (torch.float16, torch.bfloat16)
    size = max(len(x), 1) if whole else _CHUNK
    grad_down, grad_up = torch.zeros_like(a), torch.zeros_like(b)
    for g, t in zip(grad.split(size), x.split(size)):
        grad_down.addmm_(F.linear(g, b).t(), t, alpha=scale)
        grad_up.addmm_(F.linear(t, a).t(), g, alpha=scale)
    return grad_down, grad_up.t()


def _product(grad: Tensor, weight: Tensor) -> Tensor:
    """grad (n, out) @ weight (out, in), in the type of `grad`."""
    return input_gradient(grad, weight.to(grad.dtype))


def _typed(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the type of `like`; where it is that already, the question costs less than the answer."""
    return tensor if tensor.dtype == like.dtype else tensor.to(like.dtype)


def _wide(weight: Tensor, factor: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, factor.dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if _autocasting(x) else x.dtype


def _autocasting(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.autocast(x.device.type, enabled=False) if _autocasting(x) else contextlib.nullcontext()
