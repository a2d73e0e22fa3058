"""Progress of long work for people: a bar on a terminal, plain lines elsewhere. Shows steps and time, never data."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar

from tqdm import tqdm

from privimage.machine.readers import go_on_without_readers

__all__ = ["Interruptible", "Progress", "Silent", "Terminal", "Ticker"]

T = TypeVar("T")


class Ticker(Protocol):
    """Called with the number of finished steps; in training on public images, with the loss of the last one as well."""

    def __call__(self, done: int, /, public_loss: float | None = None) -> None: ...


class Progress:
    """How a stage tells how far it is. The base class says nothing; subclasses override `ticker` and `note`."""

    def note(self, text: str) -> None:
        """Tell people something that is no error: one sentence, without anything private."""

    @contextmanager
    def ticker(self, description: str, total: int | None) -> Iterator[Ticker]:
        """A function to call with the number of finished steps, for the time of the `with` block."""
        yield _nothing

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, counting them; without a `total`, it is their length, if they have one."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.ticker(description, total) as tick:
            for number, item in enumerate(items, start=1):
                yield item
                tick(number)


class Silent(Progress):
    """No progress at all."""


class Interruptible(Progress):
    """Another progress, which asks at each tick whether to stop: for stages where nothing is lost by stopping anywhere."""

    def __init__(self, inner: Progress, check: Callable[[], None]) -> None:
        self._inner = inner
        self._check = check

    def note(self, text: str) -> None:
        self._inner.note(text)

    @contextmanager
    def ticker(self, description: str, total: int | None) -> Iterator[Ticker]:
        with self._inner.ticker(description, total) as inner:

            def tick(done: int, /, public_loss: float | None = None) -> None:
                inner(done, public_loss)
                self._check()

            yield tick


class Terminal(Progress):
    """A bar on a terminal; where the stream is no terminal, a line every 10 seconds. Goes on where nobody reads any more."""

    def __init__(self, stream: TextIO | None = None, seconds_between_lines: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        go_on_without_readers(self._stream)
        self._pause = seconds_between_lines

    def note(self, text: str) -> None:
        print(f"  {text}", file=self._stream, flush=True)

    @contextmanager
    def ticker(self, description: str, total: int | None) -> Iterator[Ticker]:
        if self._stream.isatty():
            with tqdm(total=total, desc=f"  {description}", file=self._stream, leave=False, dynamic_ncols=True) as bar:
                yield lambda done, /, public_loss=None: _advance(bar, done)
            return
        start = last = time.monotonic()
        of = f" of {total}" if total else ""

        def tick(done: int, /, public_loss: float | None = None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= self._pause:
                last = now
                left = f", {(now - start) / done * (total - done):.0f} s left" if total and done else ""
                print(f"  {description}: {done}{of}{left}", file=self._stream, flush=True)

        yield tick


def _nothing(done: int, /, public_loss: float | None = None) -> None:
    """Say nothing."""


def _advance(bar: tqdm, done: int) -> None:
    bar.update(done - bar.n)
