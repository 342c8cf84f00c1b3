"""Scalars, images and histograms of a run: where they are kept (EventStorage) and how they are written out.

Code anywhere below a training loop calls `get_event_storage().put_scalar(...)`; writers read the newest values later.
"""
import contextlib
import datetime
import itertools
import json
import logging
import math
import os
import time
from collections import defaultdict
from typing import Optional

import torch
from fvcore.common.history_buffer import HistoryBuffer

from detectron2.utils.file_io import PathManager

_CURRENT_STORAGE_STACK = []


def get_event_storage():
    """The innermost EventStorage in use; AssertionError outside of every `with EventStorage()`."""
    assert _CURRENT_STORAGE_STACK, "No event storage is active: enter one by `with EventStorage() as storage`"
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage():
    """Whether a `with EventStorage()` is active."""
    return bool(_CURRENT_STORAGE_STACK)


class EventStorage:
    """History of every named scalar from `start_iter` on, and images and histograms that no writer has taken yet."""

    def __init__(self, start_iter=0):
        self._iter, self._current_prefix = start_iter, ""
        self._history, self._latest_scalars, self._smoothing_hints = defaultdict(HistoryBuffer), {}, {}
        self._vis_data, self._histograms = [], []

    def __enter__(self):
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        assert _CURRENT_STORAGE_STACK[-1] is self, "event storages must be left in the order opposite to entering"
        _CURRENT_STORAGE_STACK.pop()

    @property
    def iter(self):
        """The current iteration, counted from 0; equals the number of finished ones after training."""
        return self._iter

    @iter.setter
    def iter(self, value):
        self._iter = int(value)

    iteration = iter

    def step(self):
        self._iter += 1

    @contextlib.contextmanager
    def name_scope(self, name):
        """Puts `name/` before every name that is stored inside the `with`; a nested scope replaces the outer one."""
        outer, self._current_prefix = self._current_prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def put_scalar(self, name, value, smoothing_hint=True, cur_iter=None):
        """Stores one number, of iteration `cur_iter`, by default the current one.

        `smoothing_hint` is False for numbers whose last value counts (a learning rate, a metric); a name keeps the hint
        of its first use, else AssertionError.
        """
        name = self._current_prefix + name
        value = float(value)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was stored with smoothing_hint={hint} before"
        iteration = self._iter if cur_iter is None else cur_iter
        # In this order, because a writer may read in another thread what it finds among the latest.
        self._history[name].update(value, iteration)
        self._latest_scalars[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint=True, cur_iter=None, **kwargs):
        """put_scalar for every keyword."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name, img_tensor):
        """Keeps an image, RGB of shape (3, H, W), uint8 or float in [0, 1], until a writer takes it."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name, hist_tensor, bins=1000):
        """Keeps the histogram of all elements of a tensor, in TensorBoard's raw form, until a writer takes it."""
        low, high = float(hist_tensor.min()), float(hist_tensor.max())
        limits = torch.linspace(low, high, steps=bins + 1)[1:].tolist()
        self._histograms.append(
            {
                "tag": hist_name, "global_step": self._iter, "num": len(hist_tensor), "min": low, "max": high,
                "sum": float(hist_tensor.sum()), "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": limits, "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
            }
        )

    def clear_images(self):
        self._vis_data = []

    def clear_histograms(self):
        self._histograms = []

    def history(self, name):
        """The HistoryBuffer of a scalar; KeyError if nothing was stored by that name."""
        if name not in self._history:
            raise KeyError(f"No scalar named {name} has been stored")
        return self._history[name]

    def histories(self):
        """{name: HistoryBuffer} of all scalars."""
        return self._history

    def latest(self):
        """{name: (last value, its iteration)}."""
        return self._latest_scalars

    def smoothing_hints(self):
        """{name: smoothing_hint}."""
        return self._smoothing_hints

    def count_samples(self, name, window_size=20):
        """How many values of a scalar were stored in the `window_size` iterations that end with its last one."""
        values = self._history[name].values() if name in self._history else []
        recent = itertools.takewhile(lambda entry: entry[1] > values[-1][1] - window_size, reversed(values))
        return sum(1 for _ in recent)

    def latest_with_smoothing_hint(self, window_size=20):
        """Like latest(), but hinted scalars give the median over the last `window_size` iterations."""
        result = {}
        for name, (value, iteration) in list(self._latest_scalars.items()):
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, iteration)
        return result


class EventWriter:
    """Base of what takes values out of the current EventStorage: `write()` often, `close()` once."""

    def write(self):
        raise NotImplementedError

    def close(self):
        pass


class _LatestScalarsWriter(EventWriter):
    """Remembers up to which iteration scalars have been written, so that none is written twice."""

    def __init__(self, window_size):
        self._window_size, self._last_write = window_size, -1

    def _unwritten(self):
        """Yields (iteration, name, value) of scalars newer than the last call."""
        newest = self._last_write
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                newest = max(newest, iteration)
                yield iteration, name, value
        self._last_write = newest


class JSONWriter(_LatestScalarsWriter):
    """Appends one JSON object a line, `{"iteration": 19, "loss": 0.5, ...}`, for every iteration that has new scalars.

    A number that is not finite is written as null: NaN is no JSON. Smoothing: medians over `window_size` iterations.
    """

    def __init__(self, json_file, window_size=20):
        super().__init__(window_size)
        self._file_handle = PathManager.open(json_file, "a")

    def write(self):
        lines = defaultdict(dict)
        for iteration, name, value in self._unwritten():
            lines[iteration][name] = float(value) if math.isfinite(value) else None
        for iteration, scalars in lines.items():
            self._file_handle.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file_handle.flush()
        with contextlib.suppress(OSError, AttributeError):  # remote files have no descriptor to sync
            os.fsync(self._file_handle.fileno())

    def close(self):
        self._file_handle.close()


class TensorboardXWriter(_LatestScalarsWriter):
    """Writes scalars, images and histograms for TensorBoard; `kwargs` are those of SummaryWriter."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        super().__init__(window_size)
        self._options = {"log_dir": log_dir, **kwargs}
        self._summary_writer = None

    @property
    def _writer(self):
        # Importing tensorboard takes seconds, and the event file appears at once: both only when something is written.
        if self._summary_writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._summary_writer = SummaryWriter(**self._options)
        return self._summary_writer

    def write(self):
        storage = get_event_storage()
        for iteration, name, value in self._unwritten():
            self._writer.add_scalar(name, value, iteration)
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_images()  # with several writers only the one that can show them takes them
        storage.clear_histograms()

    def close(self):
        if self._summary_writer is not None:
            self._summary_writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line of progress: remaining time (given `max_iter`), losses, seconds an iteration, rate, GPU memory.

    Losses are medians over `window_size` iterations, data_time is their mean, time that of the whole run.
    """

    def __init__(self, max_iter: Optional[int] = None, window_size: int = 20):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter, self._window_size = max_iter, window_size
        self._last_write = None  # (iteration, clock) of the line before, for loops that do not measure "time"

    def write(self):
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # training is over: what is left belongs to the final evaluation
        eta = self._get_eta(storage)
        names = list(storage.histories())
        parts = [
            f" eta: {eta}  " if eta else " ",
            f"iter: {storage.iter}  ",
            self._medians(storage, [name for name in names if "loss" in name]) + "  ",
            self._medians(storage, [name for name in names if "[metric]" in name]) + "  ",
            self._times(storage, "time", lambda history, window: history.global_avg()),
            self._times(storage, "data_time", lambda history, window: history.avg(window)),
            f" lr: {storage.history('lr').latest():.5g}  " if "lr" in names else " lr: N/A  ",
            f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else "",
        ]
        self.logger.info("".join(parts))

    def _medians(self, storage, names):
        sizes = {name: storage.count_samples(name, self._window_size) for name in names}
        return "  ".join(f"{name}: {storage.history(name).median(size):.4g}" for name, size in sizes.items())

    def _times(self, storage, name, average):
        if name not in storage.histories():
            return ""
        history = storage.history(name)
        mean = average(history, storage.count_samples(name, self._window_size))
        return f"{name}: {mean:.4f}  last_{name}: {history.latest():.4f}  "

    def _get_eta(self, storage) -> Optional[str]:
        if self._max_iter is None:
            return None
        remaining = max(0, self._max_iter - storage.iter - 1)
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return str(datetime.timedelta(seconds=int(seconds)))
        before, self._last_write = self._last_write, (storage.iter, time.perf_counter())
        if before is None or before[0] == storage.iter:
            return None
        per_iteration = (self._last_write[1] - before[1]) / (storage.iter - before[0])
        return str(datetime.timedelta(seconds=int(per_iteration * remaining)))
