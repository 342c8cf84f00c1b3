import mmap

import numpy as np
import pytest

from lowrank_d2.engine.benchmark import measure


def test_the_calls_take_turns_and_the_first_round_does_not_count(monkeypatch):
    order, times = [], {"a": iter([0.1, 5.0, 3.0, 4.0]), "b": iter([9.0, 8.0, 7.0, 6.0])}
    monkeypatch.setattr(measure, "seconds", lambda call: call())

    def preparing(name):
        def prepare():
            order.append(name)
            return lambda: next(times[name])

        return prepare

    assert measure.best_seconds({"a": preparing("a"), "b": preparing("b")}, rounds=3) == {"a": 3.0, "b": 6.0}
    assert order == ["a", "b"] * 4


@pytest.mark.slow
def test_a_fresh_process_has_its_own_peak():
    block = np.ones(400_000_000 // 8)
    assert measure.peak_mb() >= block.nbytes / 1e6
    small, large = (measure.in_fresh_process(_peak_of, megabytes) for megabytes in (0, 80))
    assert large >= small + 70


def _peak_of(megabytes: int) -> float:
    block = np.ones(megabytes * 1_000_000 // 8)
    return measure.peak_mb() + 0 * block.sum()


@pytest.mark.skipif(not measure.STATUS.is_file(), reason="the peak can be started anew on Linux alone")
def test_the_peak_can_be_started_anew():
    use(100_000_000)
    now = measure.reset_peak()
    assert measure.peak_mb() < now + 20
    use(60_000_000)
    assert measure.peak_mb() > now + 50


def use(size):
    """Bytes of the system for a moment; malloc might have them left over from other tests."""
    with mmap.mmap(-1, size) as memory:
        memory.write(b"1" * size)
