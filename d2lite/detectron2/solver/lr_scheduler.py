"""Learning rates as base rate x multiplier, where the multiplier is a function of the share of training done."""
import logging
import math
from bisect import bisect_right
from typing import List

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler, ConstantParamScheduler, LinearParamScheduler, ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)



class WarmupParamScheduler(CompositeParamScheduler):
    """`scheduler` with a warm-up before it.

    Args:
        scheduler: what comes after the warm-up.
        warmup_factor: the warm-up starts at this factor times scheduler(0).
        warmup_length: share of training spent warming up, 0..1.
        warmup_method: "linear" grows to the scheduler's value at the end of the warm-up, "constant" stays.
        rescale_interval: False lets the scheduler's time run during the warm-up, True starts it afterwards.
    """

    def __init__(
        self, scheduler: ParamScheduler, warmup_factor: float, warmup_length: float, warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            end = scheduler(0.0) if rescale_interval else scheduler(warmup_length)
            warmup = LinearParamScheduler(start, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"Unknown warmup method {warmup_method!r}; there are 'linear' and 'constant'")
        super().__init__(
            [warmup, scheduler], lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies every group's initial learning rate by `multiplier(iteration / max_iter)`.

    The state dict holds only `base_lrs` and `last_epoch`, so a run may resume with another schedule.

    Args:
        multiplier: an fvcore ParamScheduler.
        max_iter: number of iterations that `multiplier` spans.
        last_iter: the iteration done last; -1 at the start.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be an fvcore ParamScheduler, got {multiplier!r}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self):
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> List[float]:
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]


class _WarmedUpLR(LRScheduler):
    """What the two schedulers of older code share: a warm-up factor that multiplies the whole schedule."""

    def __init__(self, optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch):
        logger.warning("%s is superseded by LRMultiplier with an fvcore ParamScheduler", type(self).__name__)
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def _schedule(self) -> float:
        raise NotImplementedError

    def get_lr(self) -> List[float]:
        factor = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        return [base_lr * factor * self._schedule() for base_lr in self.base_lrs]


class WarmupMultiStepLR(_WarmedUpLR):
    """Multiplies by `gamma` at each of `milestones` (increasing iterations), after a warm-up."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, milestones: List[int], gamma: float = 0.1, warmup_factor: float = 0.001,
        warmup_iters: int = 1000, warmup_method: str = "linear", last_epoch: int = -1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must increase, got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _schedule(self) -> float:
        return self.gamma ** bisect_right(self.milestones, self.last_epoch)


class WarmupCosineLR(_WarmedUpLR):
    """Half a cosine from the base rate to 0 over `max_iters`, after a warm-up."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_iters: int, warmup_factor: float = 0.001, warmup_iters: int = 1000,
        warmup_method: str = "linear", last_epoch: int = -1,
    ):
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _schedule(self) -> float:
        return (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters)) / 2


def _get_warmup_factor_at_iter(method: str, iter: int, warmup_iters: int, warmup_factor: float) -> float:
    """The factor of `iter`: 1 from `warmup_iters` on, before that `warmup_factor` or a line from it to 1."""
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        done = iter / warmup_iters
        return warmup_factor + (1 - warmup_factor) * done
    raise ValueError(f"Unknown warmup method {method!r}; there are 'linear' and 'constant'")
