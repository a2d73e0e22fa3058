"""Output whose reader may be gone: a worker that was killed, a `tee` that ended, a terminal that was closed.

What a run prints is for people and no part of its work. Loggers, progress bars and libraries keep the stream that they were
given first, so it is the stream itself that learns to go on, not those who write to it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["go_on_without_readers"]

# EIO is what a terminal says that was closed.
_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ESHUTDOWN, errno.ENXIO})


def go_on_without_readers(*streams: TextIO | None) -> None:
    """From now on nobody who writes to these streams (none: stdout and stderr) learns that their reader is gone.

    After the first such error the stream leads nowhere, also for what writes past Python, and for child processes. Other
    errors, such as a full disk below a redirected stdout, stay errors. Doing it again changes nothing.
    """
    for stream in streams or (sys.stdout, sys.stderr):
        # Whoever took the stream before holds the same object: replacing it in `sys` would not reach them.
        kept = getattr(stream, "__dict__", None)
        if stream is None or kept is None or "write" in kept:
            continue
        for name in ("write", "flush"):
            setattr(stream, name, _without_reader(stream, getattr(stream, name)))


def _without_reader(stream: TextIO, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            _lead_nowhere(stream)
            return len(arguments[0]) if arguments else None

    return call


def _lead_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
