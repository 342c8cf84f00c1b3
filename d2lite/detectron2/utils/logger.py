"""Logging: one call sets up a logger for the terminal and a file a process; helpers log a message only now and then."""
import atexit
import copy
import functools
import logging
import os
import sys
import time
from collections import Counter

import torch
from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

D2_LOG_BUFFER_SIZE_KEY: str = "D2_LOG_BUFFER_SIZE"
DEFAULT_LOG_BUFFER_SIZE: int = 1024 * 1024

_DATE_FORMAT = "%m/%d %H:%M:%S"


class _ColorfulFormatter(logging.Formatter):
    """Shortens the root of the logger's name and marks warnings and errors."""

    def __init__(self, *args, root_name="", abbrev_name="", **kwargs):
        super().__init__(*args, **kwargs)
        self._root = root_name + "."
        self._short_root = abbrev_name + "." if abbrev_name else ""

    def formatMessage(self, record):
        record = copy.copy(record)  # the file's handler sees the same one
        record.name = record.name.replace(self._root, self._short_root)
        line = super().formatMessage(record)
        marks = {logging.WARNING: "WARNING", logging.ERROR: "ERROR", logging.CRITICAL: "ERROR"}
        mark = marks.get(record.levelno)
        return f"{colored(mark, 'red', attrs=['blink'])} {line}" if mark else line


@functools.lru_cache(maxsize=None)
def setup_logger(
    output=None, distributed_rank=0, *, color=True, name="detectron2", abbrev_name=None,
    enable_propagation: bool = False, configure_stdout: bool = True,
):
    """Give a logger its handlers; the same arguments again return the same logger unchanged.

    Args:
        output: a file ending in ``.txt`` or ``.log``, or a folder that gets ``log.txt``; None writes no file.
        distributed_rank: rank 0 writes to stdout and ``output``, rank r > 0 only to ``output.rank<r>``.
        abbrev_name: what the terminal shows for ``name``; "d2" for "detectron2".
        enable_propagation: also hand records to the root logger.
        configure_stdout: whether to write to stdout at all, if wanted in ``color``.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT)

    if configure_stdout and distributed_rank == 0:
        formatter = plain
        if color:
            formatter = _ColorfulFormatter(
                colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_DATE_FORMAT, root_name=name,
                abbrev_name=str(abbrev_name) if abbrev_name is not None else {"detectron2": "d2"}.get(name, name),
            )
        _add_stream(logger, sys.stdout, formatter)

    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename = f"{filename}.rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        _add_stream(logger, _cached_log_stream(filename), plain)
    return logger


def _add_stream(logger, stream, formatter):
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.lru_cache(maxsize=None)
def _cached_log_stream(filename):
    """One open stream a file, shared by all loggers; remote paths are buffered, local ones line by line."""
    buffering = 1 if "://" not in filename else int(os.environ.get(D2_LOG_BUFFER_SIZE_KEY, DEFAULT_LOG_BUFFER_SIZE))
    stream = PathManager.open(filename, "a", buffering=buffering)
    atexit.register(stream.close)
    return stream


def _find_caller():
    """The module of the first caller outside this file, and a key (file, line, function) for that place."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    module, code = frame.f_globals["__name__"], frame.f_code
    return ("detectron2" if module == "__main__" else module), (code.co_filename, frame.f_lineno, code.co_name)


_LOG_COUNTER = Counter()
_LOG_TIMER = {}


def log_first_n(lvl, msg, n=1, *, name=None, key="caller"):
    """Log only the first ``n`` times, counting by ``key``: "caller" (the line of code), "message", or a tuple of both.

    ``name`` is the logger, by default the caller's module.
    """
    module, place = _find_caller()
    keys = (key,) if isinstance(key, str) else tuple(key)
    assert keys, "log_first_n needs something to tell messages apart by: 'caller', 'message' or both."
    identity = (place if "caller" in keys else ()) + ((msg,) if "message" in keys else ())
    _LOG_COUNTER[identity] += 1
    if _LOG_COUNTER[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl, msg, n=1, *, name=None):
    """Log the first and then every ``n``-th time that this line of code runs."""
    module, place = _find_caller()
    _LOG_COUNTER[place] += 1
    if n == 1 or _LOG_COUNTER[place] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl, msg, n=1, *, name=None):
    """Log unless this line of code logged less than ``n`` seconds ago."""
    module, place = _find_caller()
    now = time.time()
    last = _LOG_TIMER.get(place)
    if last is None or now - last >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LOG_TIMER[place] = now


def create_small_table(small_dict):
    """A dict of a few numbers as a table of one row."""
    rows, headers = [tuple(small_dict.values())], list(small_dict)
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f", stralign="center", numalign="center")


def _log_api_usage(identifier: str):
    """Tell torch's usage log, which is off unless the embedding application listens, that an API was used."""
    torch._C._log_api_usage_once("detectron2." + identifier)
