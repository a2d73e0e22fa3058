"""Folders for payloads in the making, and what is left of them when a process is killed."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privimage.errors import StoreError
from privimage.store.files import Store, advice

__all__ = ["scratch_folder"]

_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOCK = "lock"
_MAKING = "."


@contextmanager
def scratch_folder(store: Store) -> Iterator[Path]:
    """An empty folder that only this user can read and that is gone after the `with` block.

    In a local store it lies below `private/scratch/`, so that publishing needs no space elsewhere; else in the
    system's folder for temporary files. Folders there whose process was killed are removed: they may hold sensitive
    images.

    Raises:
        StoreError: the folder cannot be made or written, or the disk is full, in the `with` block as well.
    """
    place = store.local_path("private/scratch")
    try:
        if place is None:
            with tempfile.TemporaryDirectory(prefix="privimage-", ignore_cleanup_errors=True) as name:
                yield Path(name)
        else:
            with _locked_folder(place) as folder:
                yield folder
    except OSError as error:
        where = place or tempfile.gettempdir()
        if error.errno not in _DISK_IS_FULL and not str(error.filename).startswith(str(where)):
            raise
        raise StoreError(f"Cannot write below {where} ({error}); {advice(error)}") from error


@contextmanager
def _locked_folder(place: Path) -> Iterator[Path]:
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.parent.chmod(0o700)
    _remove_abandoned(place)
    # Made under a name that nobody clears away, and renamed once it is locked; the lock ends with the process.
    making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=place))
    with (making / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (making / "payload").mkdir()
        folder = making.rename(place / making.name.removeprefix(_MAKING))
        try:
            yield folder / "payload"
        finally:
            shutil.rmtree(folder)


def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"[!{_MAKING}]*"):
        try:
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except (FileNotFoundError, BlockingIOError):
            # Just being made, or just being removed, or in use.
            continue
