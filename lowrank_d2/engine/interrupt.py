"""SIGINT and SIGTERM as a wish to stop: the step is finished and the state saved; a second signal stops at once."""
import contextlib
import logging
import os
import signal
import threading
from types import FrameType
from typing import Iterator, Optional

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The run was asked to stop by a signal. Not an Exception: nothing but the command line should catch it.

    Attributes:
        signal_number: of the signal; exit_code: 128 + that.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class SignalGuard:
    """While it is entered, the first SIGINT or SIGTERM is noted in `received` instead of ending the process."""

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._at_once = self._leaving = False
        self._owner = os.getpid()
        self._previous: dict = {}

    def __enter__(self) -> "SignalGuard":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> Optional[int]:
        """The signal that any process of the run received; every process must ask, and all get the same answer."""
        if comm.get_world_size() == 1:
            return self.received
        return max(comm.all_gather(self.received or 0)) or None

    @contextlib.contextmanager
    def stops_at_once(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted where it arrives: for work that can be repeated. Not with several processes."""
        self._at_once = comm.get_world_size() == 1
        try:
            if self._at_once and self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self._at_once = False

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Inside, signals change nothing: for the way out, which is short and must not be left half done."""
        self._leaving = True
        try:
            yield
        finally:
            self._leaving = False

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self._owner:  # a loader worker that inherited us: the main process ends it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._leaving:
            return
        if self.received or self._at_once:
            self.received = number
            raise Interrupted(number)
        self.received = number
        logger.warning(
            "Received %s: finishing this step and saving; once more stops at once.", signal.Signals(number).name
        )


def raise_on_terminate() -> None:
    """Makes SIGTERM raise Interrupted, as SIGINT raises KeyboardInterrupt, so that locks and temporary files go."""
    owner = os.getpid()

    def handle(number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() == owner:
            raise Interrupted(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handle)
