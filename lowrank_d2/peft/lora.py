"""LoRA: W + s B A with A (rank, in) random and B (out, rank) zero (Hu et al., arXiv:2106.09685).

s is alpha / rank, or alpha / sqrt(rank) with rank stabilisation (rsLoRA; Kalajdzievski, arXiv:2312.03732).
In Mask DINO the method is applied to W_Q and W_V of regular and to W_offset and W_V of deformable attention, with
alpha = rank (facts of the paper: equation 9 and Table A1). Biases stay as they are.
"""
import math
from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional

from torch import Tensor, nn

from lowrank_d2.layers.linear import linear
from lowrank_d2.layers.low_rank import LowRank, Update
from lowrank_d2.peft import checks
from lowrank_d2.peft.method import Factors, LowRankMethod, wide_zeros


@dataclass(frozen=True)
class LoRA(LowRankMethod):
    """What to add to every target; further options in `LowRankMethod`.

    Attributes:
        dropout: probability of dropping an input element of A, in training.
        rslora: divide alpha by the root of the rank.
    """

    name: ClassVar[str] = "lora"
    training_only: ClassVar[tuple[str, ...]] = ("targets", "dropout")

    dropout: float = 0.0
    rslora: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self._set("dropout", checks.probability(self.key("dropout"), self.dropout))
        checks.boolean(self.key("rslora"), self.rslora)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        down = wide_zeros(weight, self.rank, weight[0].numel())
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        return {"lora_A": down, "lora_B": wide_zeros(weight, len(weight), self.rank)}

    def update(self, weight: Tensor, tensors: Mapping[str, Tensor], rows: Optional[Tensor]) -> tuple[Update, Factors]:
        return LowRank(self.scale), (tensors["lora_A"], tensors["lora_B"])

    def change(self, x: Tensor, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        thin = linear(x, tensors["lora_A"].to(x.dtype))
        return self.scale * linear(thin, tensors["lora_B"].to(x.dtype))
