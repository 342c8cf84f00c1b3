"""Surviving a full GPU."""
import logging
from contextlib import suppress
from functools import wraps

import torch


def retry_if_cuda_oom(func):
    """Wrap ``func`` so that it is tried again with an emptied cache, then with its tensor arguments on the CPU.

    Only top-level arguments that have ``.device`` and ``.to`` move; the result of a CPU run stays on the CPU. As
    ``func`` may run up to three times, it must not change its arguments.
    """

    def to_cpu(value):
        on_gpu = getattr(getattr(value, "device", None), "type", "") == "cuda"
        return value.to(device="cpu") if on_gpu and hasattr(value, "to") else value

    @wraps(func)
    def wrapped(*args, **kwargs):
        with suppress(torch.OutOfMemoryError):
            return func(*args, **kwargs)
        torch.cuda.empty_cache()
        with suppress(torch.OutOfMemoryError):
            return func(*args, **kwargs)
        name = getattr(func, "__qualname__", str(func))
        logging.getLogger(__name__).info("%s does not fit into GPU memory; running it on the CPU.", name)
        return func(*map(to_cpu, args), **{key: to_cpu(value) for key, value in kwargs.items()})

    return wrapped
