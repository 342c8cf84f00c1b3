"""Hooks: timing, learning rate, checkpoints, evaluation, writing. Those that profile need a full Detectron2."""
import datetime
import itertools
import logging
import math
import operator
import time
from collections import Counter
from functools import partialmethod

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from detectron2._lite import refused_class
from detectron2.engine.train_loop import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

_logger = logging.getLogger(__name__)

TorchProfiler = refused_class("TorchProfiler", __name__, HookBase)
AutogradProfiler = refused_class("AutogradProfiler", __name__, HookBase)
TorchMemoryStats = refused_class("TorchMemoryStats", __name__, HookBase)


def _duration(seconds):
    return datetime.timedelta(seconds=int(seconds))


def _is_finished(trainer):
    """In after_train: whether all iterations were done, or an exception ended them."""
    return trainer.iter + 1 >= trainer.max_iter


def _is_due(trainer, period):
    """Whether this iteration is a multiple of `period` and not the last one, which after_train deals with."""
    finished = trainer.iter + 1
    return period > 0 and finished % period == 0 and finished != trainer.max_iter


class CallbackHook(HookBase):
    """Calls functions with the trainer."""

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        self._callbacks = {name: call for name, call in locals().items() if name != "self" and call is not None}

    def _call(self, when):
        if when in self._callbacks:
            self._callbacks[when](self.trainer)

    before_train = partialmethod(_call, "before_train")
    before_step = partialmethod(_call, "before_step")
    after_step = partialmethod(_call, "after_step")

    def after_train(self):
        self._call("after_train")
        self._callbacks.clear()  # they may be closures over the trainer, which would keep it alive


class IterationTimer(HookBase):
    """Stores the seconds of every iteration but the first `warmup_iter` as "time", and logs the total at the end.

    Register it first: then "time" holds the steps and the hooks before it, not those after it.
    """

    def __init__(self, warmup_iter=3):
        self._left_out = warmup_iter
        self._step_timer, self._total_timer = Timer(), Timer()
        self._measured, self._began = 0, 0.0

    def before_train(self):
        self._measured, self._began = 0, time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def before_step(self):
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self):
        if self.trainer.iter - self.trainer.start_iter + 1 >= self._left_out:
            self._measured += 1
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._began = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self):
        total = int(time.perf_counter() - self._began)
        in_steps = self._total_timer.seconds()
        if self._measured > 0 and in_steps > 0:
            average = in_steps / self._measured
            _logger.info("%d iterations took %s, %.4f s each", self._measured, _duration(in_steps), average)
        _logger.info("The training took %s, of which hooks had %s", _duration(total), _duration(total - in_steps))


class PeriodicWriter(HookBase):
    """Calls writers every `period` iterations, at the last one and after training, and then closes them."""

    def __init__(self, writers, period=20):
        self._writers, self._period = list(writers), period

    def after_step(self):
        finished = self.trainer.iter + 1
        if finished % self._period == 0 or finished == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self):
        for writer in self._writers:
            writer.write()  # what the after_train of earlier hooks has produced
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer as a hook: saves every `period` iterations and at the last one."""

    def before_train(self):
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is better than ever before in this run; register it after EvalHook.

    `val_metric` is a stored scalar, such as "bbox/AP50"; NaN and infinity are never best.
    """

    def __init__(
        self, eval_period: int, checkpointer: Checkpointer, val_metric: str, mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ("max", "min"), f"mode must be 'max' or 'min', not {mode!r}"
        self._period, self._val_metric = eval_period, val_metric
        self._saver, self._name = checkpointer, file_prefix
        self._is_better = operator.gt if mode == "max" else operator.lt
        self.best_metric, self.best_iter = None, None

    def after_step(self):
        if _is_due(self.trainer, self._period):
            self._best_checking()

    def after_train(self):
        if _is_finished(self.trainer):
            self._best_checking()

    def _best_checking(self):
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            _logger.warning("No metric %s has been stored: the best model is not saved", self._val_metric)
            return
        value, iteration = latest
        if self._update_best(value, iteration):
            _logger.info("Saving the best model: %s is %.5f after %d iterations", self._val_metric, value, iteration)
            self._saver.save(self._name, iteration=iteration)
        else:
            best = self.best_metric, self.best_iter
            _logger.info("%s is %.5f, and stays best with %s of iteration %s", self._val_metric, value, *best)

    def _update_best(self, value, iteration):
        worse = self.best_metric is not None and not self._is_better(value, self.best_metric)
        if worse or not math.isfinite(value):
            return False
        self.best_metric, self.best_iter = value, iteration
        return True


class LRScheduler(HookBase):
    """Stores the learning rate as "lr" after every iteration, then steps the schedule, by default the trainer's.

    `scheduler` is torch's, or an fvcore ParamScheduler that multiplies the initial rates over the whole training.
    """

    def __init__(self, optimizer=None, scheduler=None):
        self._optimizer, self._scheduler = optimizer, scheduler

    def before_train(self):
        if self._optimizer is None:
            self._optimizer = self.trainer.optimizer
        schedule = self.scheduler
        if isinstance(schedule, ParamScheduler):
            run = self.trainer
            self._scheduler = LRMultiplier(self._optimizer, schedule, run.max_iter, last_iter=run.iter - 1)
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer):
        """The group whose rate stands for all: the largest, or, if each has one parameter, of the commonest rate."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self):
        shown = self._optimizer.param_groups[self._best_param_group_id]
        self.trainer.storage.put_scalar("lr", shown["lr"], smoothing_hint=False)
        self.scheduler.step()

    scheduler = property(lambda self: self._scheduler or self.trainer.scheduler)

    def state_dict(self):
        schedule = self.scheduler
        return schedule.state_dict() if isinstance(schedule, _LRScheduler) else {}

    def load_state_dict(self, state_dict):
        schedule = self.scheduler
        if isinstance(schedule, _LRScheduler):
            schedule.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every `eval_period` (0: never) iterations and after a finished training, and stores the results.

    `eval_function` returns a nested dict of numbers, or nothing; {"a": {"b": 1}} is stored as the scalar "a/b".
    """

    def __init__(self, eval_period, eval_function, eval_after_train=True):
        self._period, self._func, self._at_end = eval_period, eval_function, eval_after_train

    def _do_eval(self):
        results = self._func()
        if results:
            assert isinstance(results, dict), f"the evaluation must return a dict, not {results!r}"
            scalars = {}
            for name, value in flatten_results_dict(results).items():
                try:
                    scalars[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"evaluations return nested dicts of numbers, but {name} is {value!r}") from error
            self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
        # Evaluating takes each process a different time; the next step would wait inside a collective operation.
        comm.synchronize()

    def after_step(self):
        if _is_due(self.trainer, self._period):
            self._do_eval()

    def after_train(self):
        if self._at_end and _is_finished(self.trainer):
            self._do_eval()
        del self._func  # most likely a closure over the trainer


class PreciseBN(HookBase):
    """Recomputes the statistics of BatchNorm layers over `num_iter` batches every `period` iterations and at the end.

    Register it before EvalHook and checkpoints, with a loader independent of the one for training.
    """

    def __init__(self, period, model, data_loader, num_iter):
        if not get_bn_modules(model):
            _logger.info("PreciseBN has nothing to do: no BatchNorm layer is in training mode")
            model = None
        self._period, self._model, self._num_iter = period, model, num_iter
        self._loader, self._batches = data_loader, None

    def after_step(self):
        finished = self.trainer.iter + 1
        if finished == self.trainer.max_iter or (self._period > 0 and finished % self._period == 0):
            self.update_stats()

    def update_stats(self):
        """Recomputes the statistics now."""
        if self._model is None:
            return
        if self._batches is None:
            self._batches = iter(self._loader)
        batches = itertools.islice(self._batches, self._num_iter)
        # What the model stores in its forward pass is not about training: it goes to a storage of its own.
        with EventStorage():
            _logger.info("Computing BatchNorm statistics over %d batches", self._num_iter)
            update_bn_stats(self._model, batches, self._num_iter)
