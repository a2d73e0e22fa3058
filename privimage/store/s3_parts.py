"""Objects that are too large for one request, there and back: in parts, several at once, and whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

__all__ = ["PART", "download", "upload"]

PART = 16 * 2**20
"""Bytes of a part; of an object of more than ten thousand such parts, which S3 does not take, they are larger."""

_MOST_PARTS = 10_000
_AT_ONCE = 8


def upload(
    client: Any, size: int, read: Callable[[int, int], bytes], *, Bucket: str, Key: str, **condition: str
) -> None:
    """Write an object of `size` bytes, of which `read(start, count)` gives any piece; `condition` as in PutObject.

    Nothing is visible before all parts are there and are put together. An upload that fails is taken back.
    """
    part = max(PART, -(-size // _MOST_PARTS))
    where = {"Bucket": Bucket, "Key": Key}
    where["UploadId"] = client.create_multipart_upload(**where)["UploadId"]

    def send(number: int) -> dict[str, object]:
        piece = read((number - 1) * part, min(part, size - (number - 1) * part))
        return {"PartNumber": number, "ETag": client.upload_part(PartNumber=number, Body=piece, **where)["ETag"]}

    def take_back() -> None:
        with suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**where)

    with ExitStack() as failed:
        failed.callback(take_back)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            parts = list(threads.map(send, range(1, -(-size // part) + 1)))
        client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **where, **condition)
        failed.pop_all()


def download(client: Any, size: int, local: Path, *, Bucket: str, Key: str) -> str:
    """Write an object of `size` bytes over the file `local`; SHA-256 in hex of what was written.

    The digest is computed while parts are still coming.
    """
    local.write_bytes(b"")
    digest = hashlib.sha256()

    def fetch(start: int) -> int:
        asked = f"bytes={start}-{min(start + PART, size) - 1}"
        data = client.get_object(Bucket=Bucket, Key=Key, Range=asked)["Body"].read()
        with local.open("r+b") as file:
            file.seek(start)
            file.write(data)
        return len(data)

    with ThreadPoolExecutor(_AT_ONCE) as threads, local.open("rb") as file:
        for length in threads.map(fetch, range(0, size, PART)):
            digest.update(file.read(length))
    return digest.hexdigest()
