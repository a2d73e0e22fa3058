"""Being asked to stop: Ctrl-C, SIGTERM, or a caller. Long stages answer at the end of a step, after a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from privimage.errors import Stopped

__all__ = ["StopRequest", "stop_on_signals"]


class StopRequest:
    """Whether this run was asked to stop. May be asked from any thread or signal handler."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._deferring = False

    def ask(self) -> None:
        """Ask to stop at the end of the step, or before the next stage."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def check(self) -> None:
        """Raise Stopped if asked: for places where nothing is lost by stopping."""
        if self.asked:
            raise Stopped("Stopped as asked; the same command goes on from here.")

    @contextmanager
    def answered_between_steps(self) -> Iterator[None]:
        """Inside, the first signal only asks; outside of it, where nobody would answer for long, it interrupts."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: interrupts at once, or asks where the stage answers soon; a second signal interrupts."""
        if not self._deferring or self.asked:
            raise KeyboardInterrupt
        self.ask()
        sys.stderr.write("privimage: stopping after this step (once more: at once) ...\n")


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM go to `request`; only Python's main thread can do this, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, request.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
