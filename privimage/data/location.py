"""Where a source's path points to: this machine, or anything fsspec reaches (s3:// and the like)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError

from privimage.errors import DataError

__all__ = ["filesystem", "is_remote", "local_path", "reading"]


def is_remote(path: str) -> bool:
    """Whether the path is a URL other than file://."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """The path of a local file or folder, with ~ resolved."""
    return Path(path.removeprefix("file://")).expanduser()


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path, and the path in it.

    Listings are never cached: a bucket that was filled a minute ago must not look empty.
    """
    with reading(path):
        if not is_remote(path):
            return fsspec.filesystem("file"), str(local_path(path))
        fs, root = fsspec.core.url_to_fs(path, use_listings_cache=False)
        return fs, str(root).rstrip("/")


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
