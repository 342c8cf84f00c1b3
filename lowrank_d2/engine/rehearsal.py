"""Building all that a run will build before it writes anything: on the meta device, so in seconds and without memory."""
import contextlib
import logging
from typing import Iterator

import torch
from detectron2.config import CfgNode
from torch import nn

from lowrank_d2.engine.evaluators import check_evaluator
from lowrank_d2.engine.trainer import LowRankTrainer


def rehearse(cfg: CfgNode, trains: bool) -> None:
    """Builds the model, the mappers and, where the run `trains`, optimizer and schedule; keeps nothing.

    Looks for the evaluators, too.

    Raises:
        LowRankError: what the run itself would raise, unmatched targets for example.
    """
    for name in cfg.DATASETS.TEST:
        check_evaluator(name)
    with _silence():
        try:
            model = build_on_meta(cfg)
        except (NotImplementedError, RuntimeError):
            return  # a foreign model that looks at its own numbers; the real building will say what is wrong
        if trains:
            LowRankTrainer.build_lr_scheduler(cfg, LowRankTrainer.build_optimizer(cfg, model))
        for is_train in {False, trains}:
            LowRankTrainer.build_mapper(cfg, is_train)


def build_on_meta(cfg: CfgNode) -> nn.Module:
    """The model of `cfg` with shapes and without values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return LowRankTrainer.build_model(cfg)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is logged inside: the real building will say the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
