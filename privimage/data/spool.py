"""Admitted images that wait: which split a sensitive image is in is known only when all have been seen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from privimage.data.facts import Identity

__all__ = ["Admitted", "Spool"]


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """One image in its canonical form, with the digest of the original and where it came from.

    `used_bits`: how many bits its pixels use, of one with more than 8; else None.
    """

    png: bytes
    digest: bytes
    label: int
    path: str
    used_bits: int | None


class Spool:
    """Admitted images, whose files wait in a temporary one until all are known."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ends: list[int] = [0]
        self.digests: list[bytes] = []
        self.labels: list[int] = []
        self.paths: list[str] = []

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Self]:
        """An empty one, whose file lies in `folder` without a name, and is gone at the end."""
        with tempfile.TemporaryFile(dir=folder) as file:
            yield cls(cast(BinaryIO, file))

    def add(self, item: Admitted) -> None:
        self._ends.append(self._ends[-1] + self._file.write(item.png))
        self.digests.append(item.digest)
        self.labels.append(item.label)
        self.paths.append(item.path)

    def png(self, row: int) -> bytes:
        """The file of one image."""
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row])

    @property
    def rows(self) -> NDArray[np.int64]:
        """All row numbers."""
        return np.arange(len(self.labels))

    def identity(self) -> str:
        """Of the set, as `facts.Identity` has it."""
        identity = Identity()
        for digest, label in zip(self.digests, self.labels, strict=True):
            identity.add(digest, label)
        return identity.hexdigest()
