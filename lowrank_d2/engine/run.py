"""A whole run as tools/train_net.py offers it: configure and check everything, then train or evaluate."""
import argparse
import contextlib
import logging
import os
from typing import Any, Dict, Iterator

from detectron2.config import CfgNode
from detectron2.utils import comm

from lowrank_d2.data.check import check_config
from lowrank_d2.engine import launch, own_data
from lowrank_d2.engine.checkpoint import LowRankCheckpointer, verify_weights
from lowrank_d2.engine.defaults import LOGGERS, check_device, config_parser, load_config, prepare_output_dir, show_log
from lowrank_d2.engine.evaluators import ap_table, verify_expected
from lowrank_d2.engine.rehearsal import rehearse
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.errors import ConfigError
from lowrank_d2.files import folder_lock

logger = logging.getLogger(__name__)


def train_parser(description: str) -> argparse.ArgumentParser:
    """The command line of train_net.py."""
    parser = config_parser(description)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST, train nothing")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    launch.add_arguments(parser)
    own_data.add_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Checks all that can be checked, then trains or evaluates, alone in OUTPUT_DIR."""
    cfg = configure(args)
    check_device(cfg)
    launch.check_address(args)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs data: set DATASETS.TEST or give --train-json and --val-json.")
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise ConfigError("There is nothing to train on: set DATASETS.TRAIN or give --train-json and --train-images.")
    if not args.resume:
        verify_weights(cfg)
    check_config(_read_by(cfg, args))
    if not args.eval_only:
        own_data.check_share(cfg, launch.world_size(args))
    rehearse(cfg, trains=not args.eval_only)
    prepare_output_dir(cfg.OUTPUT_DIR)
    with folder_lock(cfg.OUTPUT_DIR):
        if launch.world_size(args) == 1:
            _run(cfg, args)
        else:
            launch.run_processes(_run_one_of_several, args)


def configure(args: argparse.Namespace) -> CfgNode:
    """The configuration of a run, with the data that it names registered."""
    cfg = load_config(args.config_file, args.opts)
    own_data.use_own_data(cfg, args)
    own_data.check_names(cfg)
    own_data.take_classes(cfg, args.opts)
    world = launch.world_size(args)
    if cfg.SOLVER.IMS_PER_BATCH % world and not args.eval_only:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world} processes cannot share evenly. "
            f"Use a multiple of {world}."
        )
    if args.epochs is not None and not args.eval_only:
        own_data.use_epochs(cfg, args.epochs, args.opts)
    cfg.freeze()
    return cfg


def _read_by(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """`cfg` without the datasets that the run does not read."""
    if not args.eval_only:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = ()
    return cfg


def _run_one_of_several(args: argparse.Namespace) -> None:
    show_log(comm.get_rank())
    _run(configure(args), args)  # the catalogs are empty in a new process


def _run(cfg: CfgNode, args: argparse.Namespace) -> None:
    with _log_file(os.path.join(cfg.OUTPUT_DIR, "log.txt")):
        results = _evaluate(cfg, args.resume) if args.eval_only else _train(cfg, args.resume)
    if comm.is_main_process():
        if results:
            print(ap_table(results))
        print(f"Files: {os.path.abspath(cfg.OUTPUT_DIR)}", flush=True)


def _train(cfg: CfgNode, resume: bool) -> Dict[str, Any]:
    trainer = LowRankTrainer(cfg)
    trainer.resume_or_load(resume)
    return trainer.train()


def _evaluate(cfg: CfgNode, resume: bool) -> Dict[str, Any]:
    model = LowRankTrainer.build_model(cfg)
    if not cfg.MODEL.WEIGHTS and not resume:
        logger.warning("MODEL.WEIGHTS is empty: a model with random weights is evaluated.")
    LowRankCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = LowRankTrainer.test(cfg, model)
    verify_expected(cfg, results)
    return results


@contextlib.contextmanager
def _log_file(path: str) -> Iterator[None]:
    """Appends what is logged to `path` too; on the main process alone."""
    if not comm.is_main_process():
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
        handler.close()
