"""Where a source's path points to: this machine, or anything fsspec reaches (s3:// and the like)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from botocore.exceptions import BotoCoreError

from privimage.errors import DataError

__all__ = ["filesystem", "is_remote", "local_path", "open_parquet_file", "reading"]


def is_remote(path: str) -> bool:
    """Whether the path is a URL other than file://."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """The path of a local file or folder: ~ is resolved, and in a file:// URL what is percent-encoded (RFC 8089)."""
    if path.startswith("file://"):
        return Path(unquote(path.removeprefix("file://").removeprefix("localhost")))
    return Path(path).expanduser()


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path, and the path in it.

    Listings are never cached: a bucket that was filled a minute ago must not look empty. On S3 a request is tried again
    while the server is away for a minute, but an address that is wrong from the start is told at once.
    """
    with reading(path):
        if not is_remote(path):
            return fsspec.filesystem("file"), str(local_path(path))
        if path.startswith("s3://"):
            bucket, _, folder = path.removeprefix("s3://").strip("/").partition("/")
            _check_bucket(path, bucket, folder)
            return _patient_s3(), f"{bucket}/{folder}".rstrip("/")
        fs, root = fsspec.core.url_to_fs(path, use_listings_cache=False)
        return fs, str(root).rstrip("/")


def _check_bucket(path: str, bucket: str, folder: str) -> None:
    """Look whether the bucket answers: what it says names no file, so it may be told."""
    from privimage.store.s3 import S3Backend

    try:
        S3Backend(bucket, folder).check()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from None


def _patient_s3() -> Any:
    """s3fs without its listing cache, which hides what others wrote, even from `exists`."""
    from s3fs import S3FileSystem

    from privimage.store.s3 import PATIENT_ATTEMPTS, s3_options

    return S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs=s3_options(PATIENT_ATTEMPTS),
    )


def open_parquet_file(fs: Any, path: str) -> Any:
    """A file of `filesystem`, for pyarrow to read parts of."""
    if "s3" not in fs.protocol:
        return fs.open(path, "rb")
    from privimage.store.s3 import arrow_file_system

    return arrow_file_system().open_input_file(path)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what file systems raise into a DataError that names the path."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"Nothing found at {path}: check the path, the bucket and its endpoint.") from None
    except (OSError, BotoCoreError, ImportError, ValueError) as error:
        # The error's own text may name a file, and file names of sensitive images are private.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}.") from None
