"""LoKr: W + s kron(w1, w2), a Kronecker product of small matrices, one of them of low rank (LyCORIS, arXiv:2309.14859).

out = o1 o2 and in = i1 i2; w1 is (o1, i1), w2 (o2, i2), for a convolution (o2, i2, height, width). A factor that would
not get smaller by it stays whole; the scale is alpha / rank even then, as peft has it (LyCORIS: 1 with two whole ones).
"""
import math
from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional

from torch import Tensor, nn

from lowrank_d2.layers.low_rank import Kronecker, Update
from lowrank_d2.peft import checks
from lowrank_d2.peft.loha import has_core, with_core
from lowrank_d2.peft.method import Factors, RowDropoutMethod, wide_zeros


@dataclass(frozen=True)
class LoKr(RowDropoutMethod):
    """What to add to every target; further options in `RowDropoutMethod`.

    Attributes:
        factor: o1 and i1 if it divides out and in; else the largest divisor up to it and up to the root. -1: no limit.
        decompose_both: w1 may be of low rank too.
        rank_dropout_scale: rank dropout keeps the mean.
        effective_conv2d: a convolution with a kernel above 1 x 1 gets a core (rank, rank, height, width) in w2 instead
            of factors of the flattened kernel.
    """

    name: ClassVar[str] = "lokr"
    training_only: ClassVar[tuple[str, ...]] = ("targets", "rank_dropout", "module_dropout", "rank_dropout_scale")

    factor: int = -1
    decompose_both: bool = field(default=False, kw_only=True)
    rank_dropout_scale: bool = field(default=False, kw_only=True)
    effective_conv2d: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.factor != -1:
            checks.count(self.key("factor"), self.factor)
        for option in ("decompose_both", "rank_dropout_scale", "effective_conv2d"):
            checks.boolean(self.key(option), getattr(self, option))

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        rank = self.rank
        (o1, o2), (i1, i2) = split(weight.shape[0], self.factor), split(weight.shape[1], self.factor)
        kernel = weight.shape[2:]
        if self.decompose_both and rank < max(o1, i1) / 2:
            tensors = {"lokr_w1_a": wide_zeros(weight, o1, rank), "lokr_w1_b": wide_zeros(weight, rank, i1)}
        else:
            tensors = {"lokr_w1": wide_zeros(weight, o1, i1)}
        if rank >= max(o2, i2) / 2:
            tensors["lokr_w2"] = wide_zeros(weight, o2, i2, *kernel)
        elif has_core(self.effective_conv2d, weight):
            tensors["lokr_t2"] = wide_zeros(weight, rank, rank, *kernel)
            tensors["lokr_w2_a"] = wide_zeros(weight, rank, o2)
            tensors["lokr_w2_b"] = wide_zeros(weight, rank, i2)
        else:
            tensors["lokr_w2_a"] = wide_zeros(weight, o2, rank)
            tensors["lokr_w2_b"] = wide_zeros(weight, rank, i2 * math.prod(kernel))
        for name in tensors.keys() - {"lokr_w1", "lokr_w1_a"}:
            nn.init.kaiming_uniform_(tensors[name], a=math.sqrt(5))
        return tensors

    def update(self, weight: Tensor, tensors: Mapping[str, Tensor], rows: Optional[Tensor]) -> tuple[Update, Factors]:
        w1 = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        if "lokr_w2" in tensors:
            w2 = (tensors["lokr_w2"].flatten(1),)
        elif "lokr_t2" in tensors:
            w2 = (tensors["lokr_w2_a"].t(), with_core(tensors["lokr_t2"], tensors["lokr_w2_b"]))
        else:
            w2 = (tensors["lokr_w2_a"], tensors["lokr_w2_b"])
        return Kronecker(self.scale, rows), (w1, *w2)

    def rescaled(self, kept: Tensor) -> Tensor:
        return super().rescaled(kept) if self.rank_dropout_scale else kept


def split(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`: (factor, rest) where factor divides it, else the smaller divisor first."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = max(divisor for divisor in range(1, limit + 1) if size % divisor == 0)
    return small, size // small
