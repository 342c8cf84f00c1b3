"""Learning rates as base rate x multiplier, where the multiplier is a function of the share of training done."""
from typing import List

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler, ConstantParamScheduler, LinearParamScheduler, ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

from detectron2._lite import refused_class

WarmupMultiStepLR = refused_class("WarmupMultiStepLR", __name__, LRScheduler)  # the schedules of before 2020
WarmupCosineLR = refused_class("WarmupCosineLR", __name__, LRScheduler)


class WarmupParamScheduler(CompositeParamScheduler):
    """`scheduler` after a warm-up over `warmup_length`, 0..1, of the training.

    Args:
        warmup_factor: the warm-up starts at this factor times scheduler(0).
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
    """Multiplies every group's initial learning rate by `multiplier`, an fvcore ParamScheduler over `max_iter` steps.

    The state dict holds only `base_lrs` and `last_epoch`, so a run may resume with another schedule.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be an fvcore ParamScheduler, got {multiplier!r}")
        self._multiplier, self._max_iter = multiplier, max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self):
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> List[float]:
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]
