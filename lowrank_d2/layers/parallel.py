"""numpy on as many threads as torch uses: for what torch computes on one thread only."""
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def in_parallel(function: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Calls `function` once for every item; its time should be spent in numpy, which lets the other threads run.

    The threads end with the call, so that a process may fork afterwards.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, items):  # raises what a call raised
            pass
