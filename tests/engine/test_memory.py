"""Freed memory stays in the process."""
import os
import platform
import subprocess
import sys

import pytest

from lowrank_d2.engine import memory

COUNT = """
import resource, sys, torch
from lowrank_d2.engine.memory import keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(4)][-1])
"""


def count_faults(**environment):
    """What `keep_freed_memory` returned, and the page faults of the last of four tensors of 64 MiB."""
    base = {name: value for name, value in os.environ.items() if name not in memory._SETTINGS}
    command = [sys.executable, "-c", COUNT]
    out = subprocess.run(command, env=base | environment, capture_output=True, text=True, check=True).stdout.split()
    return out[0] == "True", int(out[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_a_tensor_takes_the_pages_of_those_before():
    assert count_faults() == (True, pytest.approx(0, abs=20))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads this")
def test_the_environment_has_the_last_word():
    kept, faults = count_faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept and faults > 20


def test_elsewhere_nothing_happens(monkeypatch):
    for name in memory._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


PIECES = """
import torch
from lowrank_d2.engine.benchmark.measure import _status_mb
from lowrank_d2.engine.memory import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
pieces = [torch.ones(2**18) for _ in range(256)]  # of 1 MiB
held, between = pieces[::2], _status_mb("VmRSS")
del pieces
freed = _status_mb("VmRSS")
print(give_back_freed_memory(), between - freed, freed - _status_mb("VmRSS"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such a function")
def test_holes_between_what_is_held_are_given_back():
    base = {name: value for name, value in os.environ.items() if name not in memory._SETTINGS}
    command = [sys.executable, "-c", PIECES]
    out = subprocess.run(command, env=base, capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "True" and float(out[1]) < 10
    assert float(out[2]) == pytest.approx(128 * 1.048576, rel=0.05)
