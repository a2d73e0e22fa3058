"""S3 as storage below a `Store`: AWS, or a server that speaks its protocol and honours `If-None-Match` on PUT.

Requests are botocore's, because s3fs has neither conditional writes, which make artifacts and ledger entries create-only,
nor part uploads that can go on after an outage. Images of sources are read through s3fs (`data.location`), as they lie
wherever their owner put them.

Whole operations are done again while the server is away. A reply that got lost is no
matter: of a create the store asks whose bytes are there, and everything else may be done twice.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from privimage.errors import StoreError
from privimage.store.patience import Patience
from privimage.store.s3_errors import as_oserror
from privimage.store.s3_parts import PART, download, upload

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["PATIENT_ATTEMPTS", "S3Backend", "arrow_file_system", "endpoint", "s3_client", "s3_options"]

T = TypeVar("T")

PATIENT_ATTEMPTS = 15
"""At a request, so that the waits between them, some 100 s, outlast a minute in which the server is away."""

_LARGEST_PUT = 5 * 2**30
"""From this size on S3 takes an object in parts only, whose completion some servers (Ceph 16) never make conditional."""


class S3Backend:
    """A bucket, below a prefix.

    Endpoint and credentials come from the usual AWS variables, and are kept nowhere else.

    Args:
        patience: how long an operation as a whole is tried again.
        attempts: at each of its requests, in quick succession, before the operation as a whole has failed.
    """

    def __init__(self, bucket: str, prefix: str, patience: Patience | None = None, attempts: int = 5) -> None:
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience = patience or Patience()
        self._client = s3_client(attempts)

    def check(self, *, wait: bool = False) -> None:
        """List one name, with few retries, so that a wrong URL or key is told at once.

        Args:
            wait: as patiently as all operations for a server that is away.

        Raises:
            OSError: FileNotFoundError (no bucket), PermissionError, ConnectionError, or another.
        """

        def look() -> None:
            with as_oserror(missing_bucket=FileNotFoundError(self.bucket)):
                s3_client(attempts=2).list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)

        if wait:
            self._patience(look, endpoint() or "AWS S3")
        else:
            look()

    def read(self, name: str) -> bytes:
        return bytes(self._persist(lambda: self._client.get_object(**self._where(name))["Body"].read()))

    def create(self, name: str, data: bytes) -> bool:
        try:
            if len(data) < _LARGEST_PUT:
                self._persist(lambda: self._client.put_object(Body=data, IfNoneMatch="*", **self._where(name)))
            else:
                self._create_in_parts(name, data)
        except FileExistsError:
            return False
        return True

    def put(self, local: Path, name: str) -> None:
        size = local.stat().st_size
        with local.open("rb") as file:

            def read(start: int, count: int) -> bytes:
                return os.pread(file.fileno(), count, start)

            def write() -> None:
                if size <= 2 * PART:
                    self._client.put_object(Body=read(0, size), **self._where(name))
                else:
                    upload(self._client, size, read, **self._where(name))

            self._persist(write)

    def get(self, name: str, local: Path) -> str:
        return self._persist(lambda: download(self._client, self.size(name), local, **self._where(name)))

    def size(self, name: str) -> int:
        return int(self._persist(lambda: self._client.head_object(**self._where(name)))["ContentLength"])

    def names(self, prefix: str) -> list[str]:
        folder = f"{self._prefix}{prefix}/" if prefix else self._prefix
        found: list[str] = []
        page: dict[str, Any] = {"IsTruncated": True}
        while page["IsTruncated"]:
            further = {"ContinuationToken": page["NextContinuationToken"]} if "NextContinuationToken" in page else {}
            page = self._list(folder, **further)
            found += [entry["Key"] for entry in page.get("Contents", [])]
        # A key that ends with a slash is what some tools put down for a folder.
        return sorted(key.removeprefix(self._prefix) for key in found if not key.endswith("/"))

    def delete(self, name: str) -> None:
        self._persist(lambda: self._client.delete_object(**self._where(name)))

    def delete_tree(self, prefix: str) -> None:
        # One by one: the bulk request needs checksums that servers other than AWS may not know.
        for name in self.names(prefix):
            self.delete(name)

    def arrow(self) -> tuple[FileSystem, str]:
        return arrow_file_system(), f"{self.bucket}/{self._prefix}".rstrip("/")

    def _list(self, folder: str, **further: str) -> dict[str, Any]:
        page: dict[str, Any] = self._persist(
            lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=folder, **further)
        )
        return page

    def _create_in_parts(self, name: str, data: bytes) -> None:
        if not self._completes_on_condition:
            raise OSError(
                errno.EFBIG,
                f"an object of {len(data) / 2**30:.1f} GiB has to be written in parts, and this server ignores "
                "If-None-Match when it puts parts together",
            )

        def read(start: int, count: int) -> bytes:
            return data[start : start + count]

        self._persist(lambda: upload(self._client, len(data), read, IfNoneMatch="*", **self._where(name)))

    @cached_property
    def _completes_on_condition(self) -> bool:
        """Whether the server refuses to put parts together under a name that is there already: tried out once."""
        name = f"probe-{secrets.token_hex(8)}"
        self._persist(lambda: self._client.put_object(Body=b"first", **self._where(name)))
        try:
            self._persist(lambda: upload(self._client, 1, lambda *_: b"2", IfNoneMatch="*", **self._where(name)))
        except FileExistsError:
            return True
        finally:
            self.delete(name)
        return False

    def _persist(self, operation: Callable[[], T]) -> T:
        def translated() -> T:
            with as_oserror(missing_bucket=OSError(errno.ENODEV, f"there is no bucket {self.bucket!r} any more")):
                return operation()

        return self._patience(translated, endpoint() or "AWS S3")

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self._prefix}{name}"}


def s3_client(attempts: int) -> Any:
    """botocore's client; threads may share it.

    Args:
        attempts: at each request, with waits that grow from half a second to ten.

    Raises:
        StoreError: an AWS variable holds what would not work, and would be shown in other libraries' messages.
    """
    from botocore.config import Config
    from botocore.session import get_session

    return get_session().create_client("s3", config=Config(max_pool_connections=32, **s3_options(attempts)))


def s3_options(attempts: int) -> dict[str, Any]:
    """botocore's settings of timeouts and retries; arguments and errors as for `s3_client`."""
    _check_environment()
    return {
        "retries": {"total_max_attempts": attempts, "mode": "standard"},
        "connect_timeout": 5,
        "read_timeout": 60,
    }


def arrow_file_system() -> FileSystem:
    """pyarrow's own S3, several times quicker than s3fs at reading parts of Parquet files."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    _check_environment()
    options: dict[str, Any] = {
        "connect_timeout": 5,
        "request_timeout": 60,
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=PATIENT_ATTEMPTS),
    }
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    if address := endpoint():
        scheme, _, host = address.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
        region = region or "us-east-1"
    return S3FileSystem(**options, **({"region": region} if region else {}))


def endpoint() -> str | None:
    """The server's address from the environment; None = AWS, or what the AWS configuration file says."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _check_environment() -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if any(character.isspace() for character in os.environ.get(name, "")):
            raise StoreError(f"{name} holds a line break or a blank: set it to the credential alone.")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if "@" in os.environ.get(name, ""):
            raise StoreError(
                f"{name} holds a user name or password: set the address alone, and the credentials in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
