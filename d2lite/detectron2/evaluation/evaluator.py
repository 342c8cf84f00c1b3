"""The loop that feeds a dataset to a model and its outputs to evaluators."""
import contextlib
import datetime
import logging
import time
from collections import OrderedDict
from typing import Any, Callable, Iterable, Mapping

import torch
from torch import nn

from detectron2.utils import comm

logger = logging.getLogger(__name__)

_LOG_PERIOD = 5.0  # seconds


class DatasetEvaluator:
    """Collects what a model gives for a dataset (`process`) and sums it up (`evaluate`).

    With several processes each one processes its share; `evaluate` is called on all of them and has to gather.
    """

    def reset(self) -> None:
        """Forget everything; called before a new round."""

    def process(self, inputs: list[dict], outputs: list[Any]) -> None:
        """Take in one batch: the model's inputs and outputs, one element an image."""

    def evaluate(self) -> Mapping[str, Mapping[str, float]] | None:
        """Results as {task: {metric: value}}; on processes other than the main one, None or {}."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one. Their tasks must differ (AssertionError)."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]):
        super().__init__()
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[Any]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict:
        results: OrderedDict = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if result is None or not comm.is_main_process():
                continue
            for task, metrics in result.items():
                assert task not in results, f"Two evaluators give results for '{task}'."
                results[task] = metrics
        return results


@contextlib.contextmanager
def inference_context(model: nn.Module):
    """Evaluation mode within the `with`; afterwards, even after an exception, every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Stopwatch:
    """Seconds spent in each phase, not counting the first batches, which are slower than the rest."""

    def __init__(self, total: int):
        self._total, self._warmup, self._counted = total, min(5, total - 1), 0
        self._begin = self._mark = time.perf_counter()
        self._seconds = {"data": 0.0, "inference": 0.0, "evaluation": 0.0}
        self._next_log = self._begin + _LOG_PERIOD

    def start(self, position: int) -> None:
        if position == self._warmup:
            self._begin = time.perf_counter()
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._counted = 0

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def stop(self, position: int) -> None:
        self._counted += 1
        now = time.perf_counter()
        if now < self._next_log or position < 2 * self._warmup:
            return
        self._next_log = now + _LOG_PERIOD
        each = (now - self._begin) / self._counted
        phases = ", ".join(f"{phase} {seconds / self._counted:.4f}" for phase, seconds in self._seconds.items())
        eta = datetime.timedelta(seconds=int(each * (self._total - position - 1)))
        logger.info(f"Inference {position + 1}/{self._total}. Seconds a batch: {phases}, {each:.4f} in all. ETA={eta}")

    def log_total(self) -> None:
        each = (time.perf_counter() - self._begin) / max(self._counted, 1)
        model = self._seconds["inference"] / max(self._counted, 1)
        spent = f"{each:.6f} s a batch, {model:.6f} s of them in the model, after {self._warmup} for warming up"
        logger.info(f"Inference on {self._total} batches took {spent}; {comm.get_world_size()} process(es).")


def inference_on_dataset(
    model: Callable, data_loader: Iterable, evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> Mapping[str, Mapping[str, float]]:
    """Run a model over a loader without gradients and in evaluation mode, and return what the evaluator gives.

    A Module returns to its mode afterwards; any other callable is just called. `callbacks` are functions without
    arguments for on_start, before_inference, after_inference (around every batch) and on_end.
    """
    if evaluator is None or isinstance(evaluator, (list, tuple)):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    def call(stage: str) -> None:
        if callbacks and stage in callbacks:
            callbacks[stage]()

    total = len(data_loader)
    logger.info(f"Inference on {total} batches begins.")
    watch = _Stopwatch(total)
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        call("on_start")
        for position, inputs in enumerate(data_loader):
            watch.start(position)
            watch.lap("data")
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("inference")
            evaluator.process(inputs, outputs)
            watch.lap("evaluation")
            watch.stop(position)
        call("on_end")
    watch.log_total()
    return evaluator.evaluate() or {}
