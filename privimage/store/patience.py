"""Trying again what may go well later: a server that is away, overloaded, or failed to answer."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["PassingFault", "Patience"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class PassingFault(ConnectionError):
    """A fault that may be gone at the next try; what was asked for may have been done all the same."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long an operation is tried again, in seconds since it first failed, and how long to wait in between.

    Waits grow twofold from `first_wait` to `longest_wait`; each is shortened by up to a half at random, so that
    clients that failed together do not come back together.
    """

    seconds: float = 180.0
    first_wait: float = 0.2
    longest_wait: float = 10.0

    def __call__(self, operation: Callable[[], T], server: str) -> T:
        """The result of `operation`, which must bear to be done twice; `server` is whom the log names.

        Raises:
            PassingFault: it still fails after `seconds`; any other error of the operation at once.
        """
        began: float | None = None
        wait = self.first_wait
        while True:
            try:
                result = operation()
            except PassingFault as fault:
                now = time.monotonic()
                if began is None:
                    began = now
                    _log.warning("%s fails (%s); trying again for up to %.0f s.", server, fault, self.seconds)
                if now - began >= self.seconds:
                    raise PassingFault(f"{fault}; tried again for {now - began:.0f} s") from fault
            else:
                if began is not None:
                    _log.warning("%s answers again, after %.0f s.", server, time.monotonic() - began)
                return result
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, self.longest_wait)
