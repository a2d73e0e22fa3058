"""What a kind of storage has to do for a `Store`, and two of them: a local folder, and memory (for tests).

A backend knows bytes under names and one promise, `create`: of several writers of one name exactly one is told True,
and no reader ever sees half an object. Names are checked by `Store`; errors leave as OSError and are worded there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["Backend", "LocalBackend", "MemoryBackend", "names_below"]

_PRIVATE = "private/"


class Backend(Protocol):
    """Bytes under names; `read`, `get` and `size` raise FileNotFoundError where there is no such object.

    `get` tells the SHA-256, in hex, of what it has written.
    """

    def read(self, name: str) -> bytes: ...

    def create(self, name: str, data: bytes) -> bool: ...

    def put(self, local: Path, name: str) -> None: ...

    def get(self, name: str, local: Path) -> str: ...

    def size(self, name: str) -> int: ...

    def names(self, prefix: str) -> list[str]: ...

    def delete(self, name: str) -> None: ...

    def delete_tree(self, prefix: str) -> None: ...

    def arrow(self) -> tuple[FileSystem, str]: ...


class LocalBackend:
    """A folder; files below `private/` are readable by their owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.root / name

    def read(self, name: str) -> bytes:
        with _absent_where_s3_has_nothing(name):
            return self.path(name).read_bytes()

    def create(self, name: str, data: bytes) -> bool:
        # A link, unlike a rename, fails if the target exists, on every POSIX file system and on NFS.
        with self._complete_file(name, BytesIO(data)) as temporary:
            target = self.path(name)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
        return True

    def put(self, local: Path, name: str) -> None:
        with open(local, "rb") as source, self._complete_file(name, source) as temporary:
            target = self.path(name)
            os.replace(temporary, target)
            _sync_folder(target.parent)

    def get(self, name: str, local: Path) -> str:
        with _absent_where_s3_has_nothing(name):
            shutil.copyfile(self.path(name), local)
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def size(self, name: str) -> int:
        path = self.path(name)
        with _absent_where_s3_has_nothing(name):
            size = path.stat().st_size
        if not path.is_file():
            raise FileNotFoundError(name)
        return size

    def names(self, prefix: str) -> list[str]:
        found = []
        for folder, _, files in os.walk(self.root / prefix, onerror=_raise_unless_absent):
            below = Path(folder).relative_to(self.root)
            found += [(below / file).as_posix() for file in files if not file.startswith(".")]
        return sorted(found)

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        # Temporary files that a crash left are taken as well: they may hold private bytes.
        for folder, _, files in os.walk(self.root / prefix, topdown=False, onerror=_raise_unless_absent):
            for file in files:
                Path(folder, file).unlink(missing_ok=True)
            try:
                os.rmdir(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):  # somebody writes or deletes here
                    raise

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self.root)

    @contextmanager
    def _complete_file(self, name: str, source: IO[bytes]) -> Iterator[Path]:
        """A whole, synced file beside the place of `name`; what is left of it is removed at the end."""
        folder = self.path(name).parent
        private = name.startswith(_PRIVATE)
        self._make_folder(folder, 0o700 if private else 0o777)
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(source, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make_folder(self, folder: Path, mode: int) -> None:
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent, mode)
        folder.mkdir(mode=mode, exist_ok=True)
        _sync_folder(folder.parent)


class MemoryBackend:
    """fsspec's file system in memory, shared by the whole process."""

    _lock = threading.RLock()

    def __init__(self, root: str) -> None:
        import fsspec

        self._root = f"/{root}"
        self._fs: Any = fsspec.filesystem("memory")

    def read(self, name: str) -> bytes:
        with self._lock:
            return bytes(self._fs.cat_file(self._path(name)))

    def create(self, name: str, data: bytes) -> bool:
        with self._lock:
            if self._fs.isfile(self._path(name)):
                return False
            self._fs.pipe_file(self._path(name), data)
            return True

    def put(self, local: Path, name: str) -> None:
        data = local.read_bytes()
        with self._lock:
            self._fs.pipe_file(self._path(name), data)

    def get(self, name: str, local: Path) -> str:
        data = self.read(name)
        local.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def size(self, name: str) -> int:
        with self._lock:
            info = self._fs.info(self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(name)
        return int(info["size"])

    def names(self, prefix: str) -> list[str]:
        with self._lock:
            found = self._fs.find(self._path(prefix))
        return names_below(found, self._root, prefix)

    def delete(self, name: str) -> None:
        with self._lock:
            if self._fs.isfile(self._path(name)):
                self._fs.rm_file(self._path(name))

    def delete_tree(self, prefix: str) -> None:
        for name in self.names(prefix):
            self.delete(name)

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._fs)), self._root

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


@contextmanager
def _absent_where_s3_has_nothing(name: str) -> Iterator[None]:
    """A folder, or a name below a file, is no object: say so as S3 would."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(name) from error


def names_below(paths: list[str], root: str, prefix: str) -> list[str]:
    """Names relative to the root, of objects in the folder `prefix` (not of one that is called like it)."""
    folder = f"{root}/{prefix}".rstrip("/") + "/"
    return sorted(path.removeprefix(f"{root}/") for path in paths if path.startswith(folder) and path != folder)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync_folder(folder: Path) -> None:
    """A new name survives a power cut only once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
