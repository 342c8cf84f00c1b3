"""Signals to this process: noted, raised, or without effect, as the guard stands."""
import os
import signal

import pytest

from lowrank_d2.engine.interrupt import Interrupted, SignalGuard


def send(number):
    os.kill(os.getpid(), number)


def test_the_first_is_noted_and_the_second_raises():
    with SignalGuard() as guard:
        send(signal.SIGTERM)
        assert guard.received == signal.SIGTERM
        with pytest.raises(Interrupted) as stop:
            send(signal.SIGINT)
        assert stop.value.exit_code == 130


def test_on_the_way_out_signals_change_nothing():
    with SignalGuard() as guard:
        send(signal.SIGTERM)
        with guard.leaving():
            send(signal.SIGINT)
            send(signal.SIGTERM)
        assert guard.received == signal.SIGTERM


def test_the_handlers_from_before_are_back_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with SignalGuard():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
