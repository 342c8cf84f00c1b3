"""The training loop: accumulation, mixed precision on any device, and a resume that changes no bit."""
import contextlib
import logging
import math
import os
import re
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowrank_d2.data.mapper import LowRankMapper
from lowrank_d2.engine import hooks, optimizer, random_state, resuming
from lowrank_d2.engine.checkpoint import LowRankCheckpointer, warn_of_little_space
from lowrank_d2.engine.data_loader import PositionedDataset, build_train_loader, loader_of
from lowrank_d2.engine.defaults import check_device, prepare_output_dir
from lowrank_d2.engine.evaluators import build_evaluator, verify_expected
from lowrank_d2.engine.interrupt import Interrupted, SignalGuard
from lowrank_d2.engine.memory import keep_freed_memory
from lowrank_d2.errors import ConfigError, LowRankError, OutputError, TrainingError
from lowrank_d2.files import DISK_FULL, explain, write_text
from lowrank_d2.modeling.delta_file import with_local_delta
from lowrank_d2.peft import PeftConfig, apply_peft, check_frozen, check_gradients, eval_frozen, regularization

logger = logging.getLogger(__name__)

_NO_NUMBERS = re.compile(r"\bnan\b|not finite|invalid numeric entries|infeasible", re.IGNORECASE)  # ours, and scipy's


class LowRankTrainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with our loop, on one process or one of several (DistributedDataParallel).

    `trainer = LowRankTrainer(cfg); trainer.resume_or_load(resume); results = trainer.train()`

    Attributes:
        results: of the newest evaluation: {task: {metric: value}}, AP 0..100.
        finished: set by a hook to end the training after the current step as if MAX_ITER were reached.
    """

    # DefaultTrainer forwards these three to its inner loop, which we do not have.
    model: nn.Module = None
    optimizer: torch.optim.Optimizer = None
    data_loader = None

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        check_device(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg.clone(), comm.get_world_size())
        cfg.defrost()
        self._own_seed = cfg.SEED >= 0
        if not self._own_seed:
            cfg.SEED = comm.shared_random_seed()
        cfg.freeze()
        self.cfg = cfg
        seed_all_rng(cfg.SEED + comm.get_rank())
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        if cfg.get("FLOAT32_PRECISION"):  # Detectron2 0.6 has no such key
            torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)

        self.device = torch.device(cfg.MODEL.DEVICE)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = _distributed(self.build_model(cfg))
        self.optimizer = self.build_optimizer(cfg, self.model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self._amp = cfg.SOLVER.AMP
        uses_scaler = self._amp.ENABLED and self._amp.DTYPE == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=uses_scaler)
        prepare_output_dir(cfg.OUTPUT_DIR)
        self.checkpointer = LowRankCheckpointer(self.model, cfg.OUTPUT_DIR)
        self.guard = SignalGuard()
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: Dict[str, Any] = {}
        self.finished = False
        self._batch: List[dict] = []
        self._random: Optional[dict] = None  # as the next step finds it
        self._in_step = False
        self.saved_iter = -1
        self.register_hooks(self.build_hooks())

    @property
    def bare_model(self) -> nn.Module:
        """The model inside DistributedDataParallel."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    @property
    def class_names(self) -> List[str]:
        """Of the training set; [] where its metadata has none."""
        return list(MetadataCatalog.get(self.cfg.DATASETS.TRAIN[0]).get("thing_classes", []))

    # What is built; classmethods as in DefaultTrainer, to be overridden in the same way.

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of `cfg`; one that does not read MODEL.PEFT itself is adapted here.

        Raises:
            ConfigError: the values of MODEL describe no model, or one that the installed Detectron2 has not.
        """
        try:
            model = build_model(cfg)
        except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} cannot be built: {type(error).__name__}: {error}. "
                "Look through the sections below MODEL, or choose another model."
            ) from error
        if not hasattr(model, "peft_config"):
            apply_peft(model, PeftConfig.from_node(with_local_delta(cfg).MODEL.PEFT))
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return optimizer.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer_: torch.optim.Optimizer) -> Any:
        return optimizer.build_scheduler(cfg, optimizer_)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Callable[[dict], Optional[dict]]:
        return LowRankMapper(cfg, is_train)

    @classmethod
    def build_validation_mapper(cls, cfg: CfgNode) -> Callable[[dict], Optional[dict]]:
        """As in testing, but with the instances that the losses need."""
        return LowRankMapper(cfg, False, with_instances=True)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, skip: int = 0) -> torch.utils.data.DataLoader:
        return build_train_loader(cfg, cls.build_mapper(cfg, True), skip)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        return build_detection_test_loader(cfg, dataset_name, mapper=cls.build_mapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_evaluator(dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))

    def build_hooks(self) -> list:
        """Evaluation before the metrics' line, that line before the checkpoint: a kill between them loses nothing."""
        cfg = self.cfg
        built = [hooks.Pruning(self)] if any(m.name == "adalora" for m in self.bare_model.peft_config.methods) else []
        built.append(hooks.Evaluation(cfg))
        if comm.is_main_process():
            built += [hooks.MetricsFile(Path(cfg.OUTPUT_DIR, "metrics.json")), hooks.Progress(), hooks.TensorBoard()]
        return built + [hooks.Checkpoints(cfg.SOLVER.CHECKPOINT_PERIOD), hooks.StopOnSignal()]

    # The loop.

    def train(self) -> Dict[str, Any]:
        """Runs from the start or the resumed iteration to the end; returns the newest evaluation's results.

        Raises:
            TrainingError: losses that are not finite, an unreadable image, a lost or hung loader worker.
            Interrupted: SIGINT or SIGTERM; the state is saved.
        """
        if self._over() and not any(hook.owed for hook in self._hooks if isinstance(hook, hooks.Evaluation)):
            logger.info("Training had already ended after %d iterations.", self.start_iter)
            return self.results
        logger.info("Training from iteration %d to %d.", self.start_iter, self.max_iter)
        with self.guard, EventStorage(self.start_iter) as self.storage:
            try:
                self._start()
                while not self._over():
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception as error:
                if isinstance(error, OutputError):
                    error.exit_code = TrainingError.exit_code  # the run had begun
                meaning = self._meaning_of(error)
                self._save_after_failure()
                if meaning is None:
                    raise
                raise meaning from error
            finally:
                with self.guard.leaving():
                    self._batches = None  # ends the loader's workers
                    self.after_train()
        verify_expected(self.cfg, self.results)
        return self.results

    def run_step(self) -> None:
        """One optimizer step over SOLVER.ACCUMULATE batches; the losses' means go to the storage."""
        self._in_step = True
        self._random = random_state.capture()
        self.optimizer.zero_grad()
        count = self.cfg.SOLVER.ACCUMULATE
        sums: Dict[str, float] = {}
        for part in range(count):
            self._batch = self._next_batch()
            with self._gradients_stay_local(part + 1 < count):
                losses = {**self._forward(self.model, self._batch), **regularization(self.bare_model)}
                self.scaler.scale(sum(losses.values()) / count).backward()
            for name, value in self._checked(losses).items():
                sums[name] = sums.get(name, 0.0) + value / count
        if self.iter == self.start_iter and not self.bare_model.peft_config.is_plain:
            check_gradients(self.bare_model)
        self.after_backward()
        self.storage.put_scalars(total_loss=sum(sums.values()), lr=self._rate(), **sums)
        self._in_step = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The mean total loss over the annotated images of DATASETS.TEST; its draws are the same at every call."""
        cfg = self.cfg
        records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=True)
        share = range(comm.get_rank(), len(records), comm.get_world_size())
        size = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
        steps = math.ceil(len(records) / (size * comm.get_world_size()))  # as many everywhere: losses ask all processes
        batches = [[(index, index) for index in share[size * step:size * (step + 1)]] for step in range(steps)]
        places = [batch or [(0, 0)] for batch in batches]
        dataset = PositionedDataset(records, self.build_validation_mapper(cfg), cfg.SEED)
        self.train_mode()
        for module in self.model.modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)):
                module.eval()
        torch.manual_seed(cfg.SEED)
        total = 0.0
        loader = loader_of(dataset, places, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TIMEOUT)
        for mine, batch in zip(batches, loader):
            total += len(mine) * float(sum(self._forward(self.bare_model, batch).values()))
        return sum(comm.all_gather(total)) / max(len(records), 1)

    def _over(self) -> bool:
        return self.finished or self.iter >= self.max_iter

    def train_mode(self) -> None:
        """Training mode, but for the parts that are frozen."""
        self.model.train()
        eval_frozen(self.bare_model)

    def _start(self) -> None:
        self.train_mode()
        if comm.is_main_process():
            write_text(Path(self.cfg.OUTPUT_DIR, "config.yaml"), self.cfg.dump())
            warn_of_little_space(self.cfg.OUTPUT_DIR, self.model)
        self.before_train()
        if self._over():
            return
        self.data_loader = self.build_train_loader(self.cfg, self.start_iter * self.cfg.SOLVER.ACCUMULATE)
        self._batches = iter(self.data_loader)
        if self._random is not None:
            random_state.restore(self._random)

    def _next_batch(self) -> List[dict]:
        try:
            return next(self._batches)
        except LowRankError as error:  # raised in a worker: torch wraps the text in its traceback
            kind = type(error).__name__
            raise type(error)(str(error).rsplit(f"{kind}: ", 1)[-1].strip()) from error

    def _forward(self, model: nn.Module, batch: List[dict]) -> Dict[str, torch.Tensor]:
        with torch.autocast(self.device.type, getattr(torch, self._amp.DTYPE), enabled=self._amp.ENABLED):
            losses = model(batch)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _checked(self, losses: Dict[str, torch.Tensor]) -> Dict[str, float]:
        """The values as numbers, the mean over all processes.

        Raises:
            TrainingError: one of this process is not finite.
        """
        stacked = torch.stack([loss.detach().float() for loss in losses.values()])
        values = dict(zip(losses, stacked.tolist()))
        wrong = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise self._not_finite(f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}")
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(stacked)
            values = dict(zip(losses, (stacked / comm.get_world_size()).tolist()))
        return values

    def _not_finite(self, what: str) -> TrainingError:
        files = ", ".join(str(sample.get("file_name", "?")) for sample in self._batch)
        return TrainingError(
            f"Iteration {self.iter}: {what} at learning rate {self._rate():g}, on the images {files}. Lower "
            "SOLVER.BASE_LR, clip gradients (SOLVER.CLIP_GRADIENTS.ENABLED True), or look at these images."
        )

    def _save_after_failure(self) -> None:
        """Saves the state before the step that failed; several processes cannot, as the others are elsewhere."""
        if not self._in_step or comm.get_world_size() > 1 or self.iter - 1 in (self.start_iter - 1, self.saved_iter):
            return
        try:
            self.save_checkpoint(f"model_{self.iter - 1:07d}")
        except LowRankError as error:
            logger.warning("The state before the failure could not be saved. %s", error)

    def _meaning_of(self, error: Exception) -> Optional[BaseException]:
        """What to raise instead of an error whose cause lies outside the program."""
        text = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, torch.OutOfMemoryError):
            return TrainingError(
                f"Iteration {self.iter}: the device ran out of memory. Lower SOLVER.IMS_PER_BATCH (and raise "
                "SOLVER.ACCUMULATE by as much) or INPUT.IMAGE_SIZE, then run again with --resume."
            )
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return TrainingError(explain(error, self.cfg.OUTPUT_DIR))
        # Matching stops at predictions that are not finite, before there is a loss to look at.
        if isinstance(error, (FloatingPointError, ValueError)) and _NO_NUMBERS.search(str(error)):
            return self._not_finite(text)
        # A dying worker shows as torch's RuntimeError, anywhere, or as a broken pipe of its queue.
        lost = _lost_worker(self._batches) if isinstance(error, (RuntimeError, OSError, EOFError)) else ""
        if not lost and "DataLoader worker" not in text and "DataLoader timed out" not in text:
            return None
        if self.guard.received:
            return Interrupted(self.guard.received)
        return TrainingError(
            f"Iteration {self.iter}: {lost or text}. Too little memory or too small a /dev/shm? "
            "Lower DATALOADER.NUM_WORKERS (0 needs neither), then run again with --resume."
        )

    def _gradients_stay_local(self, local: bool) -> contextlib.AbstractContextManager:
        if local and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _rate(self) -> float:
        """The learning rate of the group with the most parameters."""
        return max(self.optimizer.param_groups, key=lambda group: len(group["params"]))["lr"]

    # Saving and resuming.

    def state_dict(self) -> Dict[str, Any]:
        """All that a resume needs beside the model; every process must call it."""
        random = self._random if self._in_step else random_state.capture()
        done = self.iter if self._in_step else self.iter + 1
        return {
            "iterations": done,
            "batches": done * self.cfg.SOLVER.ACCUMULATE,
            "config": self.cfg.dump(),
            "class_names": self.class_names,
            "finished": self.finished,
            "random": comm.all_gather(random),
            "results": resuming.plain(self.results),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "hooks": {type(hook).__name__: hook.state_dict() for hook in self._hooks if hook.state_dict()},
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Sets what `state_dict` returned.

        Raises:
            ConfigError: the run was started with other data, model, optimizer or number of processes.
        """
        self.cfg = resuming.checked_config(self.cfg, state, self._own_seed)
        self.start_iter = self.iter = state["iterations"]
        self.finished = state["finished"]
        self._random = state["random"][comm.get_rank()]
        self.results = state["results"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        for hook in self._hooks:
            if type(hook).__name__ in state["hooks"]:
                hook.load_state_dict(state["hooks"][type(hook).__name__])

    def save_checkpoint(self, name: str) -> None:
        """Writes `name`.pth; every process must call it.

        Raises:
            TrainingError: a trained parameter is not finite; nothing is written.
            OutputError: it cannot be written.
        """
        for parameter_name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                raise TrainingError(
                    f"After iteration {self.iter} the parameter {parameter_name} is not finite; no checkpoint is written. "
                    "Lower SOLVER.BASE_LR or clip gradients, and resume from the previous checkpoint."
                )
        state = self.state_dict()
        self.checkpointer.save(name, trainer=state, iteration=state["iterations"] - 1)
        self.saved_iter = state["iterations"] - 1

    def resume_or_load(self, resume: bool = True) -> None:
        """Continues the run in OUTPUT_DIR, or loads MODEL.WEIGHTS when there is none or `resume` is False.

        Raises:
            CheckpointError: MODEL.WEIGHTS leaves something random that does not train.
        """
        if not resume or not self.checkpointer.has_checkpoint():
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS)
            check_frozen(self.bare_model)
            return
        path = self.checkpointer.get_checkpoint_file()
        self.load_state_dict(resuming.trainer_state(self.checkpointer.load(path), path))
        logger.info("Resuming from %s after %d iterations.", path, self.start_iter)


def _lost_worker(batches: Any) -> str:
    """Which loader worker a signal has ended, or ""."""
    for worker in getattr(batches, "_workers", []):
        for _ in range(2):  # torch's handler for dead children may raise here what is known already
            with contextlib.suppress(RuntimeError):
                worker.join(0.2)
        if worker.exitcode is not None and worker.exitcode < 0:
            return f"the loader worker {worker.pid} was ended by {signal.Signals(-worker.exitcode).name}"
    return ""


def _distributed(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )

