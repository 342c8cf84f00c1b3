"""One-to-one assignment of many layers, and what losses are divided by."""
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowrank_d2.modeling.matcher import HungarianMatcher
from lowrank_d2.modeling.one_to_many import Assignment
from lowrank_d2.modeling.predictions import Prediction, Target


def match_layers(matcher: HungarianMatcher, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Assignment:
    """Each layer's queries, matched by themselves.

    Args:
        logits: (L, N, Q, C); boxes: (L, N, Q, 4).
    """
    layers = {f"layer_{i}": Prediction(*layer) for i, layer in enumerate(zip(logits.detach(), boxes.detach()))}
    pairs = matcher(layers, targets)
    return Assignment.of_pairs([pairs[name] for name in layers], logits.device)


def num_targets(targets: Sequence[Target], device: torch.device) -> Tensor:
    """Objects of a batch, averaged over the processes; at least one."""
    num = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(num)
        num /= dist.get_world_size()
    return num.clamp(min=1)
