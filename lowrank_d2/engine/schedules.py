"""Learning rates that move once an epoch, as torch's schedulers of the same names; an epoch is TEST.EVAL_PERIOD steps.

The published low-rank recipes for YOLOS use them. Detectron2's own schedules move every iteration and know neither
restarts nor plateaus.
"""
import math
from typing import Any, Callable, Mapping, Optional

import torch
from detectron2.config import CfgNode
from torch.optim import lr_scheduler

from lowrank_d2.errors import ConfigError


class PlateauLR(lr_scheduler.ReduceLROnPlateau):
    """Lowers the rate after evaluations without a gain: `step(ap)` once an evaluation, while `step()` does nothing."""

    def step(self, metrics: Optional[float] = None, epoch: Optional[int] = None) -> None:
        if metrics is not None:
            super().step(metrics)


def build_epoch_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """The schedule of SOLVER.LR_SCHEDULER_NAME, one of `NAMES`; without warm-up, down to zero.

    Raises:
        ConfigError: there are no epochs, or nothing to measure a plateau by.
    """
    name, period = cfg.SOLVER.LR_SCHEDULER_NAME, cfg.TEST.EVAL_PERIOD
    if period < 1:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME is {name!r}, which moves once an epoch, but TEST.EVAL_PERIOD is {period}. "
            "Set it to the iterations of an epoch."
        )
    if name == PLATEAU:
        if not cfg.DATASETS.TEST:
            raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}, but DATASETS.TEST is empty. Name some data.")
        node = cfg.SOLVER.PLATEAU
        return PlateauLR(optimizer, mode="max", factor=node.FACTOR, patience=node.PATIENCE)
    share = _SHARES[name](cfg.SOLVER)
    return lr_scheduler.LambdaLR(optimizer, lambda iteration: share(iteration // period))


def _cosine(solver: CfgNode) -> Callable[[int], float]:
    """Down over T_MAX epochs, up again over the next T_MAX."""
    span = solver.COSINE.T_MAX
    return lambda epoch: _half_cosine(epoch / span)


def _restarts(solver: CfgNode) -> Callable[[int], float]:
    """Down over T_0 epochs, then again from the top over T_MULT times as many, and so on."""
    first, factor = solver.RESTARTS.T_0, solver.RESTARTS.T_MULT

    def share(epoch: int) -> float:
        span = first
        while epoch >= span:
            epoch, span = epoch - span, span * factor
        return _half_cosine(epoch / span)

    return share


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


PLATEAU = "ReduceLROnPlateau"
_SHARES: Mapping[str, Callable[[CfgNode], Callable[[int], float]]] = {
    "CosineAnnealingLR": _cosine,
    "CosineAnnealingWarmRestarts": _restarts,
}
NAMES = (*_SHARES, PLATEAU)
