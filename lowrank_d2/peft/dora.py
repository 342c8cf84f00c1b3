"""DoRA: the direction of every row of W + s B A, at a trained length m (Liu et al., arXiv:2402.09353).

W' = m / |W + s B A| * (W + s B A), row by row; the length in the denominator is no part of the derivative. m starts as
the length of the base's rows, so it is taken again when a base is loaded after the method was put in.
"""
from dataclasses import dataclass
from typing import ClassVar, Mapping, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_d2.layers.low_rank import Magnitude, Update
from lowrank_d2.peft.lora import LoRA
from lowrank_d2.peft.method import Factors


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA's options and tensors, and a length for every row. Input dropout is seen by all of W' - W."""

    name: ClassVar[str] = "dora"

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        return {**super().create(weight), "lora_magnitude_vector": lengths(weight)}

    def update(self, weight: Tensor, tensors: Mapping[str, Tensor], rows: Optional[Tensor]) -> tuple[Update, Factors]:
        return Magnitude(self.scale), (tensors["lora_A"], tensors["lora_B"], tensors["lora_magnitude_vector"])

    def from_base(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {} if tensors["lora_B"].any() else {"lora_magnitude_vector": lengths(weight)}

    def change(self, x: Tensor, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return F.linear(x, (self.merged(weight, tensors) - weight).to(x.dtype))


def lengths(weight: Tensor) -> Tensor:
    """(out,): Euclidean lengths of the rows, in float32 or wider."""
    rows = weight.detach().flatten(1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).norm(dim=1)
