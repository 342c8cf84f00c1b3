"""Choosing DeepLab's schedule by name."""
import torch
from torch.optim.lr_scheduler import LRScheduler

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_d2_lr_scheduler

from .lr_scheduler import WarmupPolyLR


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Detectron2's builder, which also knows SOLVER.LR_SCHEDULER_NAME "WarmupPolyLR"."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_d2_lr_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer, solver.MAX_ITER, warmup_factor=solver.WARMUP_FACTOR, warmup_iters=solver.WARMUP_ITERS,
        warmup_method=solver.WARMUP_METHOD, power=solver.POLY_LR_POWER, constant_ending=solver.POLY_LR_CONSTANT_ENDING,
    )
