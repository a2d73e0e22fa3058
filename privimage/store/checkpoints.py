"""Checkpoints of a stage that is still running: create-only, digest first, the newest two kept.

One is `checkpoints/<stage>/<key>/step-000000120.ckpt`: 32 bytes SHA-256 of the rest, then the data. Those of a
sealed artifact hold what sensitive images taught the model so far, and lie below `private/`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from privimage.store.files import Store

__all__ = ["Checkpoint", "Checkpoints"]

_KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.ckpt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was saved after `step` steps."""

    step: int
    data: bytes


class Checkpoints:
    """The checkpoints of one artifact in the making; those of a sealed one lie below `private/`.

    `damaged` lists the names that `latest` found to be not what was saved.
    """

    def __init__(self, store: Store, stage: str, key: str, sealed: bool) -> None:
        self.damaged: list[str] = []
        self._store = store
        self._folder = f"{'private/' if sealed else ''}checkpoints/{stage}/{key}"

    def save(self, step: int, data: bytes) -> bool:
        """Save once for each step, and drop all but the newest two; False = another writer already has this step.

        Guarantee: of two writers with different data one is told False, so that two processes that run the same stage
        at once notice it. A checkpoint that `latest` found damaged does not count: it is replaced.

        Raises:
            ValueError: the step does not lie in 0..999,999,999.
        """
        if not 0 <= step <= 999_999_999:
            raise ValueError(f"step is {step}, expected 0 to 999,999,999.")
        name = f"{self._folder}/step-{step:09d}.ckpt"
        if name in self.damaged:
            if self._load(name) is None:  # still: another writer may have replaced it since
                self._store.delete(name)
            self.damaged.remove(name)
        if not self._store.create(name, hashlib.sha256(data).digest() + data):
            return False
        saved = self._names()
        sound = [other for other in saved if other not in self.damaged]
        oldest_kept = min(sound[-_KEPT:], default=name)
        for other in saved:
            if other < oldest_kept:
                self._store.delete(other)
        return True

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint whose digest fits; newer ones that do not fit are skipped and named in `damaged`.

        One that another writer drops while it is looked for, because newer ones are there, is no damaged one.
        """
        names = self._names()
        while True:
            self.damaged = []
            found = None
            for name in reversed(names):
                data = self._load(name)
                if data is not None:
                    found = Checkpoint(step=int(name.rpartition("/")[2][5:14]), data=data)
                    break
                self.damaged.append(name)
            if not self.damaged:
                return found
            before, names = names, self._names()
            if names == before:
                return found

    def clear(self) -> None:
        """Delete all of them, damaged ones too: once the artifact is published."""
        self._store.delete_tree(self._folder)
        self.damaged = []

    def _names(self) -> list[str]:
        return [name for name in self._store.list(self._folder) if _NAME.fullmatch(name.rpartition("/")[2])]

    def _load(self, name: str) -> bytes | None:
        """The data, or None if it is gone or its digest does not fit."""
        try:
            saved = self._store.read(name)
        except FileNotFoundError:
            return None
        digest, data = saved[:32], saved[32:]
        return data if hashlib.sha256(data).digest() == digest else None
