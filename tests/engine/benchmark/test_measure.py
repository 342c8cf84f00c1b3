import time

import numpy as np
import pytest

from lowrank_d2.engine.benchmark.measure import STATUS, best_seconds, in_fresh_process, peak_mb, reset_peak


def test_preparation_and_the_first_round_do_not_count():
    waits = iter([0.2, 0.03, 0.01, 0.02])

    def prepare():
        time.sleep(0.05)
        wait = next(waits)
        return lambda: time.sleep(wait)

    assert 0.01 <= best_seconds({"call": prepare}, rounds=3)["call"] < 0.02


def test_a_fresh_process_has_its_own_peak():
    block = np.ones(50_000_000 // 8)
    here = peak_mb()
    assert here >= block.nbytes / 1e6
    assert in_fresh_process(_peak_of, 80) >= in_fresh_process(_peak_of, 0) + 70


def _peak_of(megabytes: int) -> float:
    block = np.ones(megabytes * 1_000_000 // 8)
    return peak_mb() + 0 * block.sum()


@pytest.mark.skipif(not STATUS.is_file(), reason="the peak can be started anew on Linux alone")
def test_the_peak_can_be_started_anew():
    np.ones(100_000_000 // 8).sum()
    now = reset_peak()
    assert peak_mb() < now + 20
    np.ones(60_000_000 // 8).sum()
    assert peak_mb() > now + 50
