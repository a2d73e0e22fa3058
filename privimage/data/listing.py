"""What a folder, bucket or zip holds, as relative paths with forward slashes, whatever the writer's notion of a path was."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from privimage.data.clutter import is_clutter

__all__ = ["File", "Listing", "plain_path"]

_RENAME = "Rename these files, or make the archive or copy anew."


@dataclass(frozen=True, kw_only=True)
class File:
    """One file; `refused` says, with a cure, why it cannot be taken for an image, whatever it holds."""

    path: str
    read: Callable[[], bytes]
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Folders, the empty ones included, and files; `unclear` holds parts of paths that are written in an unknown encoding."""

    folders: frozenset[str]
    files: tuple[File, ...]
    unclear: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folders: Iterable[str], files: Iterable[File], unclear: Iterable[str] = ()) -> Listing:
        """The listing without clutter, and with every folder that a file lies in; paths are made plain.

        Files that come to lie at one path are refused, all of them: unpacked, the last would replace the others.
        """
        plain = [_plain(file) for file in files]
        times = Counter(file.path for file in plain)
        shown = [
            dataclasses.replace(file, refused=("several files have this very path", _RENAME))
            if times[file.path] > 1
            else file
            for file in plain
            if not _is_hidden(file.path)
        ]
        above = {folder for file in shown if plain_path(file.path) for folder in _above(file.path)}
        given = {path for folder in folders if (path := plain_path(folder)) and not _is_hidden(path)}
        return cls(
            folders=frozenset(above | given | {folder for path in given for folder in _above(path)}),
            files=tuple(shown),
            unclear=frozenset(unclear),
        )

    def tops(self) -> set[str]:
        """Names of the folders at the top."""
        return {folder.split("/")[0] for folder in self.folders}

    def below(self, top: str) -> set[str]:
        """Names of the folders in a folder at the top."""
        return {parts[1] for folder in self.folders if len(parts := folder.split("/")) > 1 and parts[0] == top}

    def moved(self, new_path: Callable[[str], str | None]) -> Listing:
        """The listing with other paths; what has none is left out."""
        folders = frozenset(path for folder in self.folders if (path := new_path(folder)))
        files = [(file, new_path(file.path)) for file in self.files]
        kept = tuple(dataclasses.replace(file, path=path) for file, path in files if path)
        return Listing(folders=folders, files=kept, unclear=self.unclear)


def plain_path(path: str) -> str | None:
    """The path without empty and `.` parts; None where `..` leads out of a folder."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _plain(file: File) -> File:
    path = plain_path(file.path)
    if path:
        return dataclasses.replace(file, path=path)
    return dataclasses.replace(file, refused=("its path names nothing inside of the folder", _RENAME))


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _is_hidden(path: str) -> bool:
    return any(is_clutter(part) for part in path.split("/") if part not in (".", ".."))
