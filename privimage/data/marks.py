"""Digests of single images, kept beside a table: how a sensitive image is found among public ones.

Those of public images are plain, and public. Those of sensitive images are marks: keyed, and kept below `private/`, since a
plain digest would tell whoever has a candidate whether it is there.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from privimage.errors import DataError

__all__ = ["DIGESTS_FILE", "MARKS_FILE", "mark", "read_digests", "write_digests"]

DIGESTS_FILE = "digests.parquet"
MARKS_FILE = "marks.parquet"


def mark(digests: Iterable[bytes], key: bytes) -> list[bytes]:
    """HMAC-SHA256 of each `pixel_digest` under a secret key: without the key they tell nothing about the images."""
    return [hmac.digest(key, digest, hashlib.sha256) for digest in digests]


def write_digests(file: Path, digests: Sequence[bytes]) -> None:
    """One column, `digest`, in the given order."""
    pq.write_table(pa.table({"digest": pa.array(digests, pa.binary(32))}), file)


def read_digests(file: Path) -> list[bytes]:
    """What `write_digests` wrote.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return list(pq.read_table(file, columns=["digest"]).column("digest").to_pylist())
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{file} holds no digests ({type(error).__name__}): admit the images again.") from None
