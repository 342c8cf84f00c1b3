"""What happens between steps: evaluation, early stopping, metrics, progress, checkpoints, stopping on a signal."""
import contextlib
import datetime
import json
import logging
import math
import re
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, TextIO

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter

from lowrank_d2.engine import random_state
from lowrank_d2.engine.evaluators import headline_ap
from lowrank_d2.engine.interrupt import Interrupted
from lowrank_d2.engine.schedules import PlateauLR
from lowrank_d2.files import write_text
from lowrank_d2.peft import RankBudget, save_delta

logger = logging.getLogger(__name__)

_LAYER_LOSS = re.compile(r"_(\d+|interm|dn)$")  # of one decoder layer or of denoising: too many for a line


def is_due(trainer: Any, period: int) -> bool:
    """Whether the current iteration ends a period or the training; period 0: the end alone."""
    done = trainer.iter + 1
    return (period > 0 and done % period == 0) or ends(trainer)


def ends(trainer: Any) -> bool:
    return trainer.finished or trainer.iter + 1 >= trainer.max_iter


def write_delta(trainer: Any, name: str, **extra: Any) -> None:
    """Writes OUTPUT_DIR/`name`.safetensors on the main process."""
    if comm.is_main_process():
        path = Path(trainer.cfg.OUTPUT_DIR, f"{name}.safetensors")
        header = {"iterations": trainer.iter + 1, **extra}
        save_delta(trainer.bare_model, path, class_names=trainer.class_names, extra=header)


class Pruning(HookBase):
    """AdaLoRA's step of its budget after every optimizer step, before anything looks at the weights."""

    def __init__(self, trainer: Any):
        self._budget = RankBudget(trainer.bare_model, trainer.max_iter)

    def after_step(self) -> None:
        self._budget.step()

    def state_dict(self) -> Dict[str, Any]:
        return self._budget.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._budget.load_state_dict(state)


class Evaluation(HookBase):
    """AP (and the losses) on DATASETS.TEST every EVAL_PERIOD and at the end; keeps the best delta; stops early.

    Training is not affected: random states are as before afterwards. An evaluation that a signal cuts off is made up
    for after the resume.
    """

    def __init__(self, cfg: CfgNode):
        self._test, self._datasets = cfg.TEST, cfg.DATASETS.TEST
        self._last = -1  # iteration of the newest evaluation
        self._best = -math.inf
        self._to_beat, self._without_gain = -math.inf, 0

    @property
    def owed(self) -> bool:
        """Whether the resumed run should have been evaluated after its last iteration and was not."""
        done, period = self.trainer.start_iter, self._test.EVAL_PERIOD
        at_point = done >= self.trainer.max_iter or (period > 0 and done % period == 0)
        return bool(self._datasets) and done > 0 and at_point and self._last < done - 1

    def before_train(self) -> None:
        if self.owed:
            self.trainer.iter -= 1
            self._evaluate()
            self.trainer.iter += 1

    def after_step(self) -> None:
        if self._datasets and is_due(self.trainer, self._test.EVAL_PERIOD):
            self._evaluate()

    def state_dict(self) -> Dict[str, Any]:
        return {"last": self._last, "best": self._best, "to_beat": self._to_beat, "without_gain": self._without_gain}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._last, self._best = state["last"], state["best"]
        self._to_beat, self._without_gain = state["to_beat"], state["without_gain"]

    def _evaluate(self) -> None:
        trainer = self.trainer
        try:
            with random_state.preserved(), trainer.guard.stops_at_once():
                trainer.results = trainer.test(trainer.cfg, trainer.model)
                scalars = flatten_results_dict(trainer.results)
                if self._test.VALIDATION_LOSS:
                    scalars["validation_loss"] = trainer.validation_loss()
        except Interrupted:
            return  # StopOnSignal saves, and `_last` says that this evaluation is owed
        finally:
            trainer.train_mode()
        self._last = trainer.iter
        trainer.storage.put_scalars(
            **{name: value for name, value in scalars.items() if isinstance(value, (int, float))}, smoothing_hint=False
        )
        ap = comm.all_gather(headline_ap(trainer.results))[0]  # the main process alone has results
        if ap is not None:
            self._note(ap)
            if isinstance(trainer.scheduler, PlateauLR):
                trainer.scheduler.step(ap)

    def _note(self, ap: float) -> None:
        if ap > self._best:
            self._best = ap
            write_delta(self.trainer, "delta_best", ap=ap)
        early = self._test.EARLY_STOP
        if ap > self._to_beat + early.MIN_DELTA:
            self._to_beat, self._without_gain = ap, 0
            return
        self._without_gain += 1
        if early.PATIENCE and self._without_gain >= early.PATIENCE and not self.trainer.finished:
            logger.info(
                "AP has not gained more than %g over %.2f in %d evaluations: stopping early after %d iterations.",
                early.MIN_DELTA, self._to_beat, self._without_gain, self.trainer.iter + 1,
            )
            self.trainer.finished = True


class MetricsFile(HookBase):
    """One JSON line of raw values for every iteration; a resumed run drops the lines that it will write again."""

    def __init__(self, path: Path):
        self._path = path
        self._stream: Optional[TextIO] = None

    def before_train(self) -> None:
        write_text(self._path, "".join(self._kept_lines()))
        self._stream = open(self._path, "a", encoding="utf-8")

    def after_step(self) -> None:
        values = {name: value for name, (value, when) in self.trainer.storage.latest().items() if when == self.trainer.iter}
        line = {"iteration": self.trainer.iter}
        for name in sorted(values):
            line[name] = values[name] if math.isfinite(values[name]) else None
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def after_train(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # every line is flushed: what is left here was refused before
                self._stream.close()

    def _kept_lines(self) -> Iterator[str]:
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                if json.loads(line)["iteration"] < self.trainer.start_iter:
                    yield line
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run may be half a line


class Progress(HookBase):
    """A line every 20 iterations: losses of the last layer, learning rate, speed, time to go, GPU memory."""

    PERIOD = 20

    def before_train(self) -> None:
        self._since = time.perf_counter()
        self._from = self.trainer.iter

    def after_step(self) -> None:
        trainer = self.trainer
        if not is_due(trainer, self.PERIOD):
            return
        now, done = time.perf_counter(), trainer.iter + 1
        seconds = (now - self._since) / (done - self._from)
        self._since, self._from = now, done
        latest = {name: value for name, (value, when) in trainer.storage.latest().items() if when == trainer.iter}
        losses = [
            f"{name} {value:.4g}" for name, value in sorted(latest.items())
            if "loss" in name and name != "total_loss" and not _LAYER_LOSS.search(name)
        ]
        left = datetime.timedelta(seconds=int(seconds * (trainer.max_iter - done)))
        memory = f"  max_mem {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if trainer.device.type == "cuda" else ""
        logger.info(
            "%d/%d  total_loss %.4g  %s  lr %.3g  %.3g s/iter  eta %s%s",
            done, trainer.max_iter, latest["total_loss"], "  ".join(losses), latest["lr"], seconds, left, memory,
        )


class TensorBoard(HookBase):
    """Detectron2's TensorBoard writer, every 20 iterations and at the end."""

    PERIOD = 20

    def before_train(self) -> None:
        self._writer = TensorboardXWriter(self.trainer.cfg.OUTPUT_DIR)

    def after_step(self) -> None:
        if is_due(self.trainer, self.PERIOD):
            self._writer.write()

    def after_train(self) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()


class Checkpoints(HookBase):
    """model_<iteration>.pth every `period`; model_final.pth and delta_final.safetensors at the end."""

    def __init__(self, period: int):
        self._period = period

    def before_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter or self.trainer.finished:  # an evaluation was made up for
            self.trainer.iter -= 1
            self.after_step()
            self.trainer.iter += 1

    def after_step(self) -> None:
        if ends(self.trainer):
            write_delta(self.trainer, "delta_final")
            self.trainer.save_checkpoint("model_final")
        elif is_due(self.trainer, self._period):
            self.trainer.save_checkpoint(f"model_{self.trainer.iter:07d}")


class StopOnSignal(HookBase):
    """After a signal: saves, unless this iteration is saved already, and leaves with Interrupted."""

    def after_step(self) -> None:
        number = self.trainer.guard.agreed()
        if not number:
            return
        if self.trainer.saved_iter != self.trainer.iter:
            self.trainer.save_checkpoint(f"model_{self.trainer.iter:07d}")
        comm.synchronize()  # no process may leave, and so end the others, before the main one has saved
        raise Interrupted(number)
