"""LoHa: W + s (A1 B1) o (A2 B2), an elementwise product of rank up to rank^2 (Hyeon-Woo et al., arXiv:2108.06098).

A1, A2 are (out, rank), B1, B2 (rank, in). Names and definitions are those of LyCORIS and peft.
"""
import math
from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional

import torch
from torch import Tensor, nn

from lowrank_d2.layers.low_rank import Hadamard, LowRank, Update, khatri_rao, thin_pays
from lowrank_d2.peft import checks
from lowrank_d2.peft.method import Factors, RowDropoutMethod, wide_zeros


@dataclass(frozen=True)
class LoHa(RowDropoutMethod):
    """What to add to every target; further options in `RowDropoutMethod`. Rank dropout keeps the mean.

    Attributes:
        effective_conv2d: a convolution with a kernel above 1 x 1 gets a core (rank, rank, height, width) for each
            product instead of factors of the flattened kernel: W[p, q] = sum_ij core[i, j] a[i, p] b[j, q].
    """

    name: ClassVar[str] = "loha"

    effective_conv2d: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        checks.boolean(self.key("effective_conv2d"), self.effective_conv2d)

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        tensors = {}
        out, rank, cored = len(weight), self.rank, has_core(self.effective_conv2d, weight)
        for part in "12":
            if cored:
                tensors[f"hada_t{part}"] = wide_zeros(weight, rank, rank, *weight.shape[2:])
                tensors[f"hada_w{part}_a"] = wide_zeros(weight, rank, out)
                tensors[f"hada_w{part}_b"] = wide_zeros(weight, rank, weight.shape[1])
            else:
                tensors[f"hada_w{part}_a"] = wide_zeros(weight, out, rank)
                tensors[f"hada_w{part}_b"] = wide_zeros(weight, rank, weight[0].numel())
        zero = "hada_w2_a" if cored else "hada_w2_b"
        for name in tensors.keys() - {zero}:
            nn.init.kaiming_uniform_(tensors[name], a=math.sqrt(5))
        return tensors

    def update(self, weight: Tensor, tensors: Mapping[str, Tensor], rows: Optional[Tensor]) -> tuple[Update, Factors]:
        a1, b1, a2, b2 = (factor for part in "12" for factor in _factors(tensors, part))
        if rows is not None:
            a1 = a1 * rows[:, None].to(a1.dtype)
        if thin_pays(self.rank**2, b1.shape[1], len(a1)):
            return LowRank(self.scale), khatri_rao(a1, b1, a2, b2)
        return Hadamard(self.scale), (a1, b1, a2, b2)


def has_core(effective_conv2d: bool, weight: Tensor) -> bool:
    """Whether a weight gets a core: that of a convolution with a kernel above 1 x 1, where it was asked for."""
    return effective_conv2d and weight[0, 0].numel() > 1


def with_core(core: Tensor, b: Tensor) -> Tensor:
    """(rank, in * height * width): the core (rank, rank, height, width) applied to b (rank, in)."""
    return torch.einsum("ijkl,jq->iqkl", core, b).flatten(1)


def _factors(tensors: Mapping[str, Tensor], part: str) -> tuple[Tensor, Tensor]:
    """(out, width) and (width, in * height * width)."""
    a, b = tensors[f"hada_w{part}_a"], tensors[f"hada_w{part}_b"]
    if f"hada_t{part}" not in tensors:
        return a, b
    return a.t(), with_core(tensors[f"hada_t{part}"], b)
