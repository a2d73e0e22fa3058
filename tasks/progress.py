"""Progress in Prefect: a bar with the time left, and the loss curve of public training while it grows.

A thread of its own posts the newest state every few seconds. Training never waits for the server, and goes on without
it: what cannot be posted is dropped.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_image_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from privimage.machine.progress import Progress, Terminal, Ticker
from tasks.pictures import curve_url

__all__ = ["PrefectProgress", "update_picture"]

SECONDS, SECONDS_OF_CURVES = 3.0, 15.0
SECONDS_FOR_THE_LAST = 5.0
FEWEST_POINTS, MOST_POINTS = 2, 400
# RuntimeError is what Prefect's client raises where no server answers.
NOT_POSTED = (httpx.HTTPError, PrefectException, OSError, RuntimeError)


class PrefectProgress(Progress):
    """Steps and time, and losses of public training; on the terminal as well. Never a value of sensitive images."""

    def __init__(self, name: str, stage: str) -> None:
        self._name = name
        self._stage = stage
        self._terminal = Terminal()

    def note(self, text: str) -> None:
        get_run_logger().warning(text)

    @contextmanager
    def ticker(self, description: str, total: int | None) -> Iterator[Ticker]:
        with self._terminal.ticker(description, total) as on_terminal:
            if not total:
                yield on_terminal
                return
            posted = _Posted(self._name, self._stage, description, total)

            def tick(done: int, /, public_loss: float | None = None) -> None:
                on_terminal(done)
                posted.done = done
                if public_loss is not None:
                    posted.losses.append((done, public_loss))

            # The thread needs the context of the task run, to which its artifacts belong.
            thread = threading.Thread(target=contextvars.copy_context().run, args=(posted.keep_posting,), daemon=True)
            thread.start()
            try:
                yield tick
            finally:
                posted.finished.set()
                thread.join(SECONDS_FOR_THE_LAST)


class _Posted:
    """What the server was told of one piece of work."""

    def __init__(self, name: str, stage: str, description: str, total: int) -> None:
        self.done = 0
        self.losses: list[tuple[int, float]] = []
        self.finished = threading.Event()
        self._key = f"{name}-{stage}"
        self._description, self._total = description, total
        self._first: tuple[int, float] | None = None
        self._bar: UUID | None = None
        self._curve: UUID | None = None
        self._last_curve = 0.0

    def keep_posting(self) -> None:
        """Post now, every few seconds, and at the end."""
        ended = False
        while not ended:
            ended = self.finished.is_set()
            with suppress(*NOT_POSTED):
                self._post_bar()
            if ended or time.monotonic() - self._last_curve > SECONDS_OF_CURVES:
                with suppress(*NOT_POSTED):
                    self._post_curve()
            self.finished.wait(SECONDS)

    def _post_bar(self) -> None:
        share, text = 100 * min(1.0, self.done / self._total), self._in_words()
        if self._bar is None:
            made = create_progress_artifact(progress=share, key=f"progress-{self._key}", description=text)
            self._bar = cast(UUID, made)
        else:
            update_progress_artifact(artifact_id=self._bar, progress=share, description=text)

    def _in_words(self) -> str:
        now, done = time.monotonic(), self.done
        text = f"{self._description}: {done} of {self._total}"
        if done and self._first is None:
            self._first = (done, now)  # a resumed stage begins at its checkpoint, not at 0
        if self._first is None or done == self._first[0] or done >= self._total:
            return text
        seconds = (now - self._first[1]) / (done - self._first[0]) * (self._total - done)
        return f"{text}, {_in_words(seconds)} left"

    def _post_curve(self) -> None:
        losses = self.losses[:]
        if len(losses) < FEWEST_POINTS:
            return
        self._last_curve = time.monotonic()
        picture = curve_url(losses[:: -(-len(losses) // MOST_POINTS)], title=f"{self._description}: loss so far")
        if self._curve is None:
            about = "Loss by step, on public images, while it is trained"
            self._curve = cast(UUID, create_image_artifact(picture, key=f"loss-{self._key}", description=about))
            return
        update_picture(self._curve, picture)


def update_picture(artifact: UUID, url: str) -> None:
    """Show another picture in an image artifact."""
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact_id=artifact, artifact=ArtifactUpdate(data=url))


def _in_words(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
