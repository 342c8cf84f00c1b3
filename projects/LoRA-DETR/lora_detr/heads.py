"""Class and box heads: a pair for every decoder layer, and what they predict."""
import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from lowrank_d2.layers.boxes import inverse_sigmoid
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.mlp import MLP

PRIOR = 0.01  # probability of every class at the start


@dataclass(frozen=True)
class Decoded:
    """What L decoder layers predicted for N images with Q queries, and J branches beside them.

    Attributes:
        logits: (L, N, Q, C).
        boxes: (L, N, Q, 4) cxcywh in [0, 1].
        branch_logits, branch_boxes: (J, L, N, Q, .); None where the branches were not computed.
    """

    logits: Tensor
    boxes: Tensor
    branch_logits: Optional[Tensor] = None
    branch_boxes: Optional[Tensor] = None

    def split(self, first: int) -> tuple["Decoded", "Decoded"]:
        """The predictions of the queries before the index `first`, and of the others, whose branches these are."""
        before = Decoded(self.logits[:, :, :first], self.boxes[:, :, :first])
        rest = (self.logits[:, :, first:], self.boxes[:, :, first:])
        return before, Decoded(*rest, self.branch_logits, self.branch_boxes)


def class_head(embed_dim: int, num_labels: int) -> Linear:
    """Starts so that every class has the probability `PRIOR`."""
    head = Linear(embed_dim, num_labels)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))
    return head


def box_head(embed_dim: int) -> MLP:
    """Starts by leaving every box where it is."""
    head = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=4, num_layers=3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    return head


def refine(change: Tensor, reference: Tensor, eps: float) -> Tensor:
    """Moves boxes (..., 4), or points (..., 2), by a head's output (..., 4), before the sigmoid: (..., 4) in [0, 1]."""
    before = inverse_sigmoid(reference, eps)
    if reference.shape[-1] == 2:
        return torch.cat((change[..., :2] + before, change[..., 2:]), dim=-1).sigmoid()
    return (change + before).sigmoid()


def stacked(
    logits: list[Tensor], boxes: list[Tensor], branch_logits: list[Tensor], branch_boxes: list[Tensor]
) -> Decoded:
    """The layers' predictions (N, Q, .) and, unless these lists are empty, their branches' (J, N, Q, .)."""
    branches: tuple[Optional[Tensor], Optional[Tensor]] = (None, None)
    if branch_logits:
        branches = torch.stack(branch_logits, dim=1), torch.stack(branch_boxes, dim=1)
    return Decoded(torch.stack(logits), torch.stack(boxes), *branches)
