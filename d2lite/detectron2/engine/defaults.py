"""What most training and prediction scripts share: arguments, logging, DefaultTrainer, DefaultPredictor."""
import argparse
import logging
import os
import sys
import weakref
from collections import OrderedDict
from typing import Optional

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules
from omegaconf import OmegaConf
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import detectron2.data.transforms as T
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import hooks
from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger


def create_ddp_model(model, *, fp16_compression=False, **kwargs):
    """Wraps a model for gradient exchange, by `fp16_compression` in float16; a single process gets the model itself."""
    if comm.get_world_size() < 2:
        return model
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    wrapped = DistributedDataParallel(model, **{"device_ids": None if on_cpu else [comm.get_local_rank()], **kwargs})
    if fp16_compression:
        wrapped.register_comm_hook(None, fp16_compress_hook)
    return wrapped


def default_argument_parser(epilog=None):
    """The arguments of training scripts; `epilog` is shown below the help in place of examples."""
    script = sys.argv[0]
    examples = f"""
Examples:

one machine:
    $ {script} --num-gpus 8 --config-file cfg.yaml

another learning rate:
    $ {script} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weights.pth SOLVER.BASE_LR 0.001

two machines:
    (machine 0) $ {script} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine 1) $ {script} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config of this run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    parser.add_argument("--eval-only", action="store_true", help="evaluate only")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on each machine, one for each GPU")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # Users of one machine get ports of their own, so that their runs do not meet.
    port = 2**15 + 2**14 + (os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    where = "where processes meet, see torch.distributed; 'auto' finds a free port on a single machine"
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{port}", help=where)
    changes = "changes to the config, after all other arguments: KEY VALUE pairs, for a LazyConfig path.key=value"
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=None, help=changes)
    return parser


def _try_get_key(cfg, *keys, default=None):
    """The value of the first of `keys` that a config of either kind has."""
    tree = OmegaConf.create(cfg.dump()) if isinstance(cfg, CfgNode) else cfg
    missing = object()
    found = (OmegaConf.select(tree, key, default=missing) for key in keys)
    return next((value for value in found if value is not missing), default)


def _set_float32_precision(precision: str = "high") -> None:
    """torch.set_float32_matmul_precision, unless `precision` is empty."""
    if precision:
        logging.getLogger(__name__).info("Setting the precision of float32 matrix products to %s", precision)
        torch.set_float32_matmul_precision(precision)


def default_setup(cfg, args):
    """Prepares a job: the output folder with log.txt and config.yaml, random seed, cuDNN.

    `cfg` may also be an omegaconf config with `train`; of `args` config_file and eval_only are read, if there.
    """
    folder = _try_get_key(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    rank = comm.get_rank()
    writes = rank == 0 and bool(folder)
    if writes:
        PathManager.mkdirs(folder)
    logger, _ = (setup_logger(folder, distributed_rank=rank, name=name) for name in ("detectron2", "fvcore"))
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as stream:
            logger.info("%s holds:\n%s", config_file, stream.read())

    if writes:
        path = os.path.join(folder, "config.yaml")
        if isinstance(cfg, CfgNode):
            text = cfg.dump()
            logger.info("Complete config:\n%s", text)
            with PathManager.open(path, "w") as stream:
                stream.write(text)
        else:
            LazyConfig.save(cfg, path)
        logger.info("The complete config is in %s", path)

    # Processes draw different numbers, or they would all augment alike.
    first = _try_get_key(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(first + rank if first >= 0 else None)
    # Searching for the fastest kernels does not pay for the changing sizes of evaluation.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = _try_get_key(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
    _set_float32_precision(_try_get_key(cfg, "FLOAT32_PRECISION", "train.float32_precision", default=""))


def default_writers(output_dir: str, max_iter: Optional[int] = None):
    """Writers for the log, `output_dir`/metrics.json and TensorBoard; `max_iter` gives the log a remaining time."""
    PathManager.mkdirs(output_dir)
    json_writer = JSONWriter(os.path.join(output_dir, "metrics.json"))
    return [CommonMetricPrinter(max_iter), json_writer, TensorboardXWriter(output_dir)]


class DefaultPredictor:
    """Predicts for one image at a time: model, weights, resizing, channel order and `metadata` from the config."""

    def __init__(self, cfg):
        self.cfg = cfg.clone()  # the model must not change with the caller's config
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), f"INPUT.FORMAT must be RGB or BGR, not {self.input_format}"

    def __call__(self, original_image):
        """The model's output for an (H, W, 3) BGR array as of cv2.imread, with coordinates of the original size."""
        record = dict(zip(("height", "width"), original_image.shape))
        pixels = original_image if self.input_format == "BGR" else original_image[:, :, ::-1]
        # An augmentation draws even a fixed size; predicting must not disturb the caller's random numbers.
        state = np.random.get_state()
        resize = self.aug.get_transform(pixels)
        np.random.set_state(state)
        pixels = resize.apply_image(pixels)
        channels_first = np.ascontiguousarray(np.moveaxis(pixels, 2, 0), dtype=np.float32)
        record["image"] = torch.from_numpy(channels_first).to(self.cfg.MODEL.DEVICE)
        with torch.no_grad():
            return self.model([record])[0]


def _through_inner_trainer(name):
    """A property that is `name` of self._trainer, for reading and writing."""

    def write(self, value):
        setattr(self._trainer, name, value)

    return property(lambda self: getattr(self._trainer, name), write)


class DefaultTrainer(TrainerBase):
    """Training as the config says: model, optimizer, schedule, data, checkpoints, evaluation and logs.

    Replace a part by overriding the class method that builds it. `cfg` is scaled to the number of processes;
    `checkpointer` saves the model and this trainer to OUTPUT_DIR.
    """

    model = _through_inner_trainer("model")
    optimizer = _through_inner_trainer("optimizer")
    data_loader = _through_inner_trainer("data_loader")

    def __init__(self, cfg):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        single = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, single)
        loader = self.build_train_loader(cfg)
        parallel = create_ddp_model(single, broadcast_buffers=False)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(parallel, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(parallel, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        hooks_of_run = self.build_hooks()
        self.register_hooks(hooks_of_run)

    def resume_or_load(self, resume=True):
        """Continues from the last checkpoint in OUTPUT_DIR if there is one, else loads MODEL.WEIGHTS."""
        weights, saver = self.cfg.MODEL.WEIGHTS, self.checkpointer
        saver.resume_or_load(weights, resume=resume)
        if resume and saver.has_checkpoint():
            self.start_iter = self.iter + 1  # the saved one was finished

    def build_hooks(self):
        """The hooks in their order: time, learning rate, BatchNorm, checkpoints, evaluation, writers."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # PreciseBN's loader would else hold workers all the time

        def evaluate():
            self._last_eval_results = results = self.test(self.cfg, self.model)
            return results

        period, precise = cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN
        chosen = [hooks.IterationTimer(), hooks.LRScheduler()]
        if precise.ENABLED and get_bn_modules(self.model):
            chosen.append(hooks.PreciseBN(period, self.model, self.build_train_loader(cfg), precise.NUM_ITER))
        if comm.is_main_process():  # before the evaluation: if that fails, the weights are saved
            chosen.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        chosen.append(hooks.EvalHook(period, evaluate))
        if comm.is_main_process():  # last, so that the evaluation's results are written too
            chosen.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return chosen

    def build_writers(self):
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self):
        """Trains from start_iter; returns the last evaluation's results if TEST.EXPECTED_RESULTS were checked."""
        super().train(self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process() and results is not None:
            verify_results(self.cfg, results)
            return results

    def run_step(self):
        inner = self._trainer
        inner.iter = self.iter
        inner.run_step()

    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg):
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        """A DatasetEvaluator (or None) for the dataset; there is no default, so evaluation needs an override."""
        advice = "override DefaultTrainer.build_evaluator, or set DATASETS.TEST to () to train without evaluation."
        raise NotImplementedError(f"No evaluator for {dataset_name}: {advice}")

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """{name: results} of the datasets of DATASETS.TEST, or one's results, by `evaluators` or build_evaluator's."""
        logger = logging.getLogger(__name__)
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(names) == len(evaluators), f"there are {len(names)} test datasets, {len(evaluators)} evaluators"
        results = OrderedDict()
        for index, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            except NotImplementedError as error:
                logger.warning("No evaluation on %s: %s", name, error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                assert isinstance(results[name], dict), f"an evaluator must return a dict, not {results[name]!r}"
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """A config made for SOLVER.REFERENCE_WORLD_SIZE (0: any) processes, scaled to `num_workers`.

        Batch and learning rate grow with the number of processes, everything counted in iterations shrinks
        (https://arxiv.org/abs/1706.02677).
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        batch = cfg.SOLVER.IMS_PER_BATCH
        assert batch % reference == 0, f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of the world size {reference}"
        frozen, scale = cfg.is_frozen(), num_workers / reference
        cfg = cfg.clone()
        cfg.defrost()
        solver = cfg.SOLVER

        def shrink(iterations):
            return int(round(iterations / scale))

        solver.IMS_PER_BATCH = int(round(solver.IMS_PER_BATCH * scale))
        solver.BASE_LR = solver.BASE_LR * scale
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = shrink(solver[key])
        solver.STEPS = tuple(shrink(step) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = shrink(cfg.TEST.EVAL_PERIOD)
        solver.REFERENCE_WORLD_SIZE = num_workers
        message = "Scaled the config from %d to %d processes: batch %d, learning rate %g, %d iterations"
        scaled = solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER
        logging.getLogger(__name__).info(message, reference, num_workers, *scaled)
        if frozen:
            cfg.freeze()
        return cfg
