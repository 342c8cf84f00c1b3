"""The algebra of a linear map with a low-rank update, y = x (W + s B A)^T + b, in the cheapest order for its shapes.

Two orders give the same numbers. *Factored* runs the frozen product and adds the thin branch (x A^T) B^T to it;
*merged* forms W + s B A once per call and then costs what the frozen layer costs. Merging takes out x in x rank
multiplications whatever the number of tokens, so it pays for many tokens. In both, the backward pass sends
G (W + s B A) to the input, and G^T X is only computed where W itself trains: nothing but x and the parameters is kept
between the two passes.
"""
import contextlib
from typing import Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Measured on one CPU thread for widths 256 to 1024: from here on the skinny products lose against one dense merge.
_TOKENS_PER_WIDTH_TO_MERGE = 1.5


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * up @ down, in the type of `weight`; differentiable in all three.

    Args:
        weight: (out, in).
        down: (rank, in), called A in the paper.
        up: (out, rank), called B.
        scale: alpha / rank.
    """
    with _without_autocast(weight):
        wide = torch.promote_types(weight.dtype, up.dtype)
        return torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=scale).to(weight.dtype)


def merging_pays(tokens: int, in_features: int, out_features: int) -> bool:
    """Whether forming the merged weight is cheaper than running the factors on every token."""
    return tokens >= _TOKENS_PER_WIDTH_TO_MERGE * max(in_features, out_features)


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """x (weight + scale * up @ down)^T + bias.

    Under autocast the products run in its type, as torch's own linear does; the merge in the parameters' type.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.
        down: (rank, in).
        up: (out, rank).
        scale: alpha / rank.

    Returns:
        (..., out). Differentiable once in every tensor given.
    """
    tokens = x.to(_compute_dtype(x)).reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        y = _LowRankLinear.apply(tokens, weight, bias, down, up, scale)
    else:
        y = _project(tokens, weight, bias, down, up, scale)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _project(x: Tensor, weight: Tensor, bias: Optional[Tensor], down: Tensor, up: Tensor, scale: float) -> Tensor:
    """`low_rank_linear` for tokens (n, in), in the type of `x`."""
    with _without_autocast(x):
        bias = None if bias is None else bias.to(x.dtype)
        if merging_pays(x.shape[0], weight.shape[1], weight.shape[0]):
            return F.linear(x, merged_weight(weight, down, up, scale).to(x.dtype), bias)
        y = F.linear(x, weight.to(x.dtype), bias)
        return y.addmm_(x @ down.to(x.dtype).t(), up.to(x.dtype).t(), alpha=scale)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, down, up, scale):
        return _project(x, weight, bias, down, up, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, down, up, ctx.scale = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, down, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, down, up = ctx.saved_tensors
        need_x, need_weight, need_bias, need_down, need_up, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = grad_down = grad_up = None
        with _without_autocast(grad):
            a, b = down.to(grad.dtype), up.to(grad.dtype)
            thin = grad @ b  # (n, rank)
            if need_x:
                if merging_pays(x.shape[0], weight.shape[1], weight.shape[0]):
                    grad_x = grad @ merged_weight(weight, down, up, ctx.scale).to(grad.dtype)
                else:
                    grad_x = (grad @ weight.to(grad.dtype)).addmm_(thin, a, alpha=ctx.scale)
            if need_weight:
                grad_weight = (grad.t() @ x).to(weight.dtype)
            if need_bias:
                grad_bias = grad.sum(0).to(ctx.bias_dtype)
            if need_down:
                grad_down = (thin.t() @ x).mul_(ctx.scale).to(down.dtype)
            if need_up:
                # (x A^T)^T G is twice as fast as G^T (x A^T): the long side stays contiguous.
                grad_up = ((x @ a.t()).t() @ grad).mul_(ctx.scale).t().to(up.dtype)
        return grad_x, grad_weight, grad_bias, grad_down, grad_up, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if _autocasting(x) else x.dtype


def _autocasting(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.autocast(x.device.type, enabled=False) if _autocasting(x) else contextlib.nullcontext()
