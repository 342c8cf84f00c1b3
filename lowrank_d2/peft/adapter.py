"""Sequential adapters after attention, as in the paper's section 4.3 and in its released code.

An attention block that can take an adapter owns a slot: a sub-module `adapter` that is None, and an attribute
`embed_dim`. It computes norm(s + adapter(x0, s)) with x0 the attention's output and s the residual stream.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_d2.layers.linear import Linear
from lowrank_d2.peft import checks

RESIDUALS = ("kappa", "lambda", "kappa+lambda")
INITS = ("bert", "xavier")


@dataclass(frozen=True)
class Adapter:
    """What to put into every slot.

    Attributes:
        repeats: adapters in a row (I in the paper).
        reduction: the bottleneck has max(embed_dim // reduction, 1) features (k in the paper).
        residual: what is added to every adapter's output: "lambda" the attention's output, "kappa" the residual
            stream, or the sum of both. Only "lambda" can leave the model as it was at step 0: with "kappa" the
            attention's output is lost, with "kappa+lambda" the residual stream counts twice, by design of the paper.
        init: "bert" draws weights from N(0, 0.02), but with "lambda" the second matrix is 0, so that the model starts as
            it was; "xavier" draws all Xavier-uniform, which is how the authors' code really starts. Biases are 0.

    Raises:
        ConfigError: a value out of range, by the name of its configuration key.
    """

    name: ClassVar[str] = "adapter"
    training_only: ClassVar[tuple[str, ...]] = ("init",)  # fields that do not change what an adapted model computes

    repeats: int = 1
    reduction: int = 4
    residual: str = "kappa+lambda"
    init: str = "bert"

    def __post_init__(self):
        key = "MODEL.PEFT.ADAPTER"
        checks.count(f"{key}.REPEATS", self.repeats)
        checks.count(f"{key}.REDUCTION", self.reduction)
        checks.one_of(f"{key}.RESIDUAL", self.residual, RESIDUALS)
        checks.one_of(f"{key}.INIT", self.init, INITS)

    def build(self, embed_dim: int, like: Tensor) -> "SequentialAdapter":
        """The module for a slot of width `embed_dim`, on the device of `like`, in float32 or wider."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        with torch.device(like.device):
            return SequentialAdapter(embed_dim, self).to(dtype)


class SequentialAdapter(nn.Module):
    """x_i = up_i(relu(down_i(x_{i-1}))) + rho for i = 1..I, with the same rho for every i."""

    def __init__(self, embed_dim: int, options: Adapter):
        super().__init__()
        self.options = options
        bottleneck = max(embed_dim // options.reduction, 1)
        self.layers = nn.ModuleList(_Bottleneck(embed_dim, bottleneck, options) for _ in range(options.repeats))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """
        Args:
            x: (..., embed_dim), the attention's output (lambda).
            residual: of the same shape, the stream that the attention block adds to (kappa).

        Returns:
            (..., embed_dim), what the block adds to the stream instead of `x`.
        """
        rho = {"kappa": residual, "lambda": x}.get(self.options.residual)
        if rho is None:
            rho = residual + x
        for layer in self.layers:
            x = layer(x) + rho
        return x

    def extra_repr(self) -> str:
        return f"residual={self.options.residual!r}"


class _Bottleneck(nn.Module):
    def __init__(self, embed_dim: int, bottleneck: int, options: Adapter):
        super().__init__()
        self.down = Linear(embed_dim, bottleneck)
        self.up = Linear(bottleneck, embed_dim)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            if options.init == "xavier":
                nn.init.xavier_uniform_(linear.weight)
            elif options.residual == "lambda" and linear is self.up:
                nn.init.zeros_(linear.weight)
            else:
                nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(x), inplace=True))
