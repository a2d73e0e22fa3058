"""One store: named byte objects below a root URL, with atomic create-only writes.

Artifacts, checkpoints and the privacy ledger all rest on one promise made here: of several writers that `create` the
same name, exactly one wins, and nothing half-written is ever visible. Layout and meaning of names live elsewhere.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from privimage.errors import StoreError
from privimage.store.backends import Backend, LocalBackend, MemoryBackend

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["Store", "advice", "check_name"]

_PART = re.compile(r"[A-Za-z0-9_=+@,-][A-Za-z0-9_=+@,.-]*")
_CREATE_ATTEMPTS = 6
# What is still there is not known where the storage fails: no word of what was lost or not.
_AGAIN = "run again: it goes on from what the store holds then."


def check_name(name: str) -> str:
    """Return `name` if it is a relative '/'-separated name that every kind of storage can hold.

    Raises:
        ValueError: a part is empty, begins with a dot, or has characters other than letters, digits and `_=+@,.-`.
    """
    if not _is_name(name):
        raise ValueError(
            f"{name!r} is no name in a store: expected parts of letters, digits and _=+@,.- that begin with no dot, "
            "separated by single slashes."
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Store:
    """Named byte objects below one root; may be used by several threads.

    Guarantee: `create` has one winner per name; an object is visible whole or not at all; listings are never cached.
    Every method raises ValueError for an ill-formed name and StoreError where the storage fails or refuses access.
    """

    url: str
    backend: Backend

    @staticmethod
    def open(url: str, *, known: bool = False, wait: bool = False) -> Store:
        """Open the store at `file:///folder`, a plain path, `memory://name`, or `s3://bucket/prefix`.

        A local folder is created; a bucket has to exist. S3 endpoint and credentials come from AWS_ENDPOINT_URL,
        AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION and the like.

        Args:
            known: this run has opened it before, perhaps in another process, so the bucket is not looked at once more. That look
                tells a wrong URL or key at once.
            wait: for a run, which is to outlast a minute in which the server is away, also if it begins in it. Without, an
                address where nobody answers is told within seconds.

        Raises:
            StoreError: unknown kind of URL; no such bucket; access denied; no connection; no folder can be made.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme == "file":
            if separator and not rest.startswith("/"):
                raise StoreError(f"{url} is no absolute path: expected file:///folder, with three slashes.")
            return _open_folder(Path(unquote(rest)) if separator else Path(url).expanduser())
        root = rest.strip("/")
        if scheme == "memory" and _is_name(root):
            return Store(url=f"memory://{root}", backend=MemoryBackend(root))
        if scheme == "s3" and _is_name(root):
            bucket, _, prefix = root.partition("/")
            return _open_bucket(bucket, prefix, check=not known, wait=wait)
        raise StoreError(f"{url!r} is no store: expected a path, file:///folder, memory://name or s3://bucket/prefix.")

    def read(self, name: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: there is no object of that name.
        """
        with self._worded("read", name):
            return self.backend.read(check_name(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that must not exist yet; True = it now holds this caller's bytes.

        Guarantee: callers whose data differ never both get True for one name, and what is there is never changed.
        An existing object with equal bytes counts as this caller's own, because the reply to a write may get lost and
        the write be retried: callers that race put a random id into their data.
        """
        check_name(name)
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                with self._worded("create", name):
                    return self.backend.create(name, data) or self.backend.read(name) == data
            except FileNotFoundError:
                # Deleted between the two requests, or S3's 409: a competing write that itself came to nothing.
                time.sleep(0.05 * attempt)
        raise StoreError(f"Cannot create {name} in {self.url}: the store says that it exists, but it cannot be read.")

    def upload(self, local: Path, name: str) -> None:
        """Write a file's content under `name`, whole or not at all, replacing what is there."""
        with self._worded("upload", name):
            self.backend.put(local, check_name(name))

    def download(self, name: str, local: Path) -> str:
        """Write the object to the file `local`, whole or not at all; its folder is made. Tells the SHA-256 in hex.

        Raises:
            FileNotFoundError: there is no object of that name.
        """
        check_name(name)
        with self._worded("download", name):
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.parent / f".{secrets.token_hex(8)}.tmp"
            try:
                temporary.touch(mode=0o600 if name.startswith("private/") else 0o666, exist_ok=False)
                digest = self.backend.get(name, temporary)
                os.replace(temporary, local)
                return digest
            finally:
                temporary.unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        """Whether an object (not only a folder) of that name is there now."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """The object's size in bytes.

        Raises:
            FileNotFoundError: there is no object of that name.
        """
        with self._worded("look up", name):
            return self.backend.size(check_name(name))

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""
        with self._worded("delete", name):
            self.backend.delete(check_name(name))

    def delete_tree(self, prefix: str) -> None:
        """Remove all objects in the folder `prefix`, if there are any."""
        with self._worded("delete", prefix):
            self.backend.delete_tree(check_name(prefix))

    def local_path(self, name: str) -> Path | None:
        """Where the object lies, or would lie, on this machine's disk; None where the store is no folder."""
        check_name(name)
        return self.backend.path(name) if isinstance(self.backend, LocalBackend) else None

    def arrow_filesystem(self) -> tuple[FileSystem, str]:
        """A pyarrow file system of the same storage, with the path of the root in it, for reading Parquet."""
        return self.backend.arrow()

    def probe(self) -> None:
        """Try out that create-only writes are honoured: twice in a row, then by two threads at once.

        Raises:
            StoreError: more, or fewer, than one writer won: the ledger and the artifacts would not be safe here.
        """
        folder = f"probe-{secrets.token_hex(8)}"

        def wins(name: str) -> bool:
            return self.create(f"{folder}/{name}", secrets.token_bytes(16))

        try:
            row = [wins("row"), wins("row")]
            with ThreadPoolExecutor(2) as threads:
                race = list(threads.map(wins, ["race", "race"]))
        finally:
            self.delete_tree(folder)
        if row != [True, False] or sum(race) != 1:
            raise StoreError(
                f"{self.url} ignores conditional writes (If-None-Match on PUT): of two writers of one name {sum(row)} "
                f"won one after the other and {sum(race)} at the same time, expected 1 and 1; use a folder, AWS S3, "
                "or a server that honours them."
            )

    # Last, because below this line `list` means the method.
    def list(self, prefix: str = "") -> list[str]:
        """All names in the folder `prefix` ("" = the whole store) and below, sorted, as they are now."""
        if prefix:
            check_name(prefix)
        with self._worded("list", prefix or "all objects"):
            return self.backend.names(prefix)

    @contextmanager
    def _worded(self, doing: str, name: str) -> Iterator[None]:
        """Storage faults as StoreError, with the name; absence keeps its own error."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            denied = "Access denied: cannot" if isinstance(error, PermissionError) else "Cannot"
            raise StoreError(f"{denied} {doing} {name} in {self.url} ({error}); {advice(error)}") from error


def advice(error: OSError) -> str:
    """What to do about a fault of the storage: the end of a message."""
    if isinstance(error, PermissionError):
        return "check credentials and permissions."
    if isinstance(error, ConnectionError | TimeoutError):
        return f"check AWS_ENDPOINT_URL and the network, then {_AGAIN}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"free some space there, then {_AGAIN}"
    if error.errno == errno.EROFS:
        return "name a folder that can be written, or have it mounted so."
    if error.errno == errno.ENODEV:
        return "restore it, with the ledger that was in it, from a backup: what was spent is written nowhere else."
    return f"look after the storage, then {_AGAIN}"


def _is_name(name: str) -> bool:
    return all(_PART.fullmatch(part) for part in name.split("/"))


def _open_folder(folder: Path) -> Store:
    root = folder.resolve()
    try:
        return Store(url=root.as_uri(), backend=LocalBackend(root))
    except OSError as error:
        raise StoreError(f"Cannot make the store's folder {root} ({error}); name one that can be written.") from error


def _open_bucket(bucket: str, prefix: str, *, check: bool, wait: bool) -> Store:
    from privimage.store.s3 import S3Backend, endpoint  # takes a fifth of a second, which a folder need not

    url = f"s3://{bucket}/{prefix}".rstrip("/")
    backend = S3Backend(bucket, prefix)
    server = endpoint() or "AWS S3"
    try:
        if check:
            backend.check(wait=wait)
    except FileNotFoundError as error:
        raise StoreError(f"There is no bucket {bucket!r} at {server}: create it or correct the URL.") from error
    except PermissionError as error:
        raise StoreError(
            f"Access to bucket {bucket!r} at {server} was denied ({error}): check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and the bucket's policy."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise StoreError(
            f"Cannot connect to {server} for bucket {bucket!r} ({error}): check AWS_ENDPOINT_URL and the network."
        ) from error
    except OSError as error:
        raise StoreError(f"Cannot use bucket {bucket!r} at {server} ({error}): correct the store's URL.") from error
    return Store(url=url, backend=backend)
