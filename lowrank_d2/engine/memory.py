"""What the C library does with freed memory: the difference between a slow and a fast training step on the CPU."""
import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**30
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Makes the C library keep the memory of freed tensors of up to 1 GiB for the next ones.

    By default glibc returns tensors above 32 MiB to the system, which gives the next one page by page, filled with
    zeros: in a training step of Mask DINO a quarter of the time (docs/benchmarks/mask_dino.md). The process then holds
    its peak memory to its end.

    Returns:
        False, and nothing was changed, where there is no glibc, or where the environment says how it is to be.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl have no such function, Windows no such library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, -1))


def give_back_freed_memory() -> bool:
    """Gives the system what is free now, once: after something large has gone for good, in pieces too small to be used again.

    Returns:
        False, and nothing was changed, where there is no glibc.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):  # as above
        return False
