"""Best times of alternating calls, and peak memory of fresh processes."""
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

STATUS = Path("/proc/self/status")


def best_seconds(
    calls: Mapping[str, Callable[[], Callable[[], Any]]], rounds: int = 3, warm_up: int = 1
) -> dict[str, float]:
    """The shortest time of each call. The calls take turns, so that a slow minute of the machine meets all of them.

    Args:
        calls: by name, a function that prepares (untimed) and returns what is timed.
        rounds: how many are counted.
        warm_up: rounds before them that are not.
    """
    turns = tqdm(range(warm_up + rounds), "measuring", unit="round", disable=None)  # on a terminal alone
    times = [{name: seconds(prepare()) for name, prepare in calls.items()} for _ in turns]
    return {name: min(turn[name] for turn in times[warm_up:]) for name in calls}


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call, on the GPU too."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a module-level function, called in a new interpreter: its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mb() -> float:
    """Largest resident memory of this process since its start or the last `reset_peak`, in MB of 10^6 bytes."""
    if STATUS.is_file():
        # The kernel's own mark: that of getrusage begins with what the parent held when it forked.
        return _status_mb("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def reset_peak() -> float:
    """Starts `peak_mb` anew where the kernel can (Linux). Returns what is resident now, in MB."""
    if not STATUS.is_file():
        return peak_mb()
    (STATUS.parent / "clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _status_mb(key: str) -> float:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) * 1024 / 1e6
