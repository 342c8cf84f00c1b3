"""LoRA: W + (alpha / rank) B A with A (rank, in) random and B (out, rank) zero (Hu et al., arXiv:2106.09685).

In Mask DINO the method is applied to W_Q and W_V of regular and to W_offset and W_V of deformable attention, with
alpha = rank (facts of the paper: equation 9 and Table A1). Biases stay as they are.
"""
import math
from dataclasses import dataclass
from typing import ClassVar, Mapping, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_d2.layers.low_rank import low_rank_linear, merged_weight
from lowrank_d2.peft import checks


@dataclass(frozen=True)
class LoRA:
    """What to add to every target.

    Attributes:
        rank: columns of B and rows of A.
        alpha: the update is alpha / rank times B A. None: alpha = rank, a scale of 1.
        dropout: probability of dropping an input element of A, in training.
        targets: names of Linears (see `lowrank_d2.peft.inject`); () = the model's own choice.

    Raises:
        ConfigError: a value out of range, by the name of its configuration key.
    """

    name: ClassVar[str] = "lora"
    tensors: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")

    rank: int = 8
    alpha: Optional[float] = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self):
        key = "MODEL.PEFT.LORA"
        checks.count(f"{key}.RANK", self.rank)
        alpha = self.rank if self.alpha is None else checks.positive(f"{key}.ALPHA", self.alpha)
        object.__setattr__(self, "alpha", float(alpha))
        object.__setattr__(self, "dropout", checks.probability(f"{key}.DROPOUT", self.dropout))
        object.__setattr__(self, "targets", checks.words(f"{key}.TARGETS", self.targets))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        """New tensors for a weight (out, in): with B = 0 the map starts as the base's."""
        out_features, in_features = weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        down = torch.empty(self.rank, in_features, device=weight.device, dtype=dtype)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        return {"lora_A": down, "lora_B": torch.zeros(out_features, self.rank, device=weight.device, dtype=dtype)}

    def merged(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight (out, in) that a plain Linear needs to compute the same."""
        return merged_weight(weight, tensors["lora_A"], tensors["lora_B"], self.scale)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], tensors: Mapping[str, Tensor], training: bool
    ) -> Tensor:
        """x (..., in) -> (..., out)."""
        down, up = tensors["lora_A"], tensors["lora_B"]
        if training and self.dropout > 0:  # the branch sees another input than the base: nothing to merge
            thin = F.linear(F.dropout(x, self.dropout), down.to(x.dtype))
            return F.linear(x, weight, bias) + self.scale * F.linear(thin, up.to(x.dtype))
        return low_rank_linear(x, weight, bias, down, up, self.scale)
