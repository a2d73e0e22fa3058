"""Files and folders below a folder of this machine: links are followed, but not round in circles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privimage.data.clutter import is_clutter

__all__ = ["Entry", "walk"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something below the root, `path` relative to it, with forward slashes.

    A `circle` is a link to a folder that it lies in, whose files would come again and again. What is `special` can be read
    for ever, or not at all: a named pipe, a socket, a device, or a link that leads nowhere.
    """

    path: str
    kind: Literal["folder", "file", "circle", "special"]


def walk(root: Path, fail: Callable[[OSError], None]) -> Iterator[Entry]:
    """Everything below `root`, in no order, but what `is_clutter`.

    Listed by the operating system and not by fsspec, which overlooks folders that are symbolic links.

    Args:
        fail: is told of each folder that cannot be listed, and may raise.
    """
    waiting = [("", frozenset[tuple[int, int]]())]
    while waiting:
        above, inside = waiting.pop()
        folder = root / above if above else root
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in inside:
                yield Entry(path=above, kind="circle")
                continue
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not is_clutter(entry.name)]
        except OSError as error:
            fail(error)
            continue
        if above:
            yield Entry(path=above, kind="folder")
        for entry in found:
            path = f"{above}/{entry.name}" if above else entry.name
            if _is(entry.is_dir):
                waiting.append((path, inside | {identity}))
            else:
                yield Entry(path=path, kind="file" if _is(entry.is_file) else "special")


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link that leads to itself
        return False
