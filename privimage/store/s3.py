"""S3 as storage below a `Store`: AWS, or a server that speaks its protocol and honours `If-None-Match` on PUT.

Everything that was learnt the hard way about s3fs is kept here: no listing cache, one PUT per create, every spelling
of "exists already", and whole operations done again while the server is away. A reply that got lost is no matter: of
a create the store asks whose bytes are there, and everything else may be done twice.
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

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["PATIENT_ATTEMPTS", "S3Backend", "arrow_file_system", "endpoint", "s3_file_system"]

T = TypeVar("T")

PATIENT_ATTEMPTS = 15
"""At a request, so that the waits between them, some 100 s, outlast a minute in which the server is away."""

_PART = 16 * 2**20
_PARTS_AT_ONCE = 8
_MOST_PARTS = 10_000
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
        self._fs = s3_file_system(attempts)

    def check(self) -> None:
        """List one name, with few retries, so that a wrong URL or key is told at once.

        Raises:
            OSError: FileNotFoundError (no bucket), PermissionError, ConnectionError, or another.
        """
        hasty = s3_file_system(attempts=2)
        with as_oserror(missing_bucket=FileNotFoundError(self.bucket)):
            hasty.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)

    def read(self, name: str) -> bytes:
        # One request: with more, s3fs asks for the size first.
        return bytes(self._persist(lambda: self._fs.cat_file(self._path(name), max_concurrency=1)))

    def create(self, name: str, data: bytes) -> bool:
        try:
            if len(data) < _LARGEST_PUT:
                self._call("put_object", name, Body=data, IfNoneMatch="*")
            else:
                self._create_in_parts(name, data)
        except FileExistsError:
            return False
        return True

    def put(self, local: Path, name: str) -> None:
        part = _part_size(local.stat().st_size)
        self._persist(
            lambda: self._fs.put_file(str(local), self._path(name), chunksize=part, max_concurrency=_PARTS_AT_ONCE)
        )

    def get(self, name: str, local: Path) -> None:
        self._persist(
            lambda: self._fs.get_file(self._path(name), str(local), chunksize=_PART, max_concurrency=_PARTS_AT_ONCE)
        )

    def size(self, name: str) -> int:
        return int(self._call("head_object", name)["ContentLength"])

    def names(self, prefix: str) -> list[str]:
        folder = f"{self._prefix}{prefix}/" if prefix else self._prefix
        found: list[str] = []
        page: dict[str, Any] = {"IsTruncated": True}
        while page["IsTruncated"]:
            further = {"ContinuationToken": page["NextContinuationToken"]} if found else {}
            page = self._call("list_objects_v2", Prefix=folder, **further)
            found += [entry["Key"] for entry in page.get("Contents", [])]
        # A key that ends with a slash is what some tools put down for a folder.
        return sorted(key.removeprefix(self._prefix) for key in found if not key.endswith("/"))

    def delete(self, name: str) -> None:
        self._call("delete_object", name)

    def delete_tree(self, prefix: str) -> None:
        # One by one: the bulk request needs checksums that servers other than AWS may not know.
        for name in self.names(prefix):
            self.delete(name)

    def arrow(self) -> tuple[FileSystem, str]:
        return arrow_file_system(), f"{self.bucket}/{self._prefix}".rstrip("/")

    def _create_in_parts(self, name: str, data: bytes) -> None:
        if not self._completes_on_condition:
            raise OSError(
                errno.EFBIG,
                f"an object of {len(data) / 2**30:.1f} GiB has to be written in parts, and this server ignores "
                "If-None-Match when it puts parts together",
            )
        part = _part_size(len(data))
        self._persist(
            lambda: self._fs.pipe_file(
                self._path(name), data, mode="create", chunksize=part, max_concurrency=_PARTS_AT_ONCE
            )
        )

    @cached_property
    def _completes_on_condition(self) -> bool:
        """Whether the server refuses to put parts together under a name that is there already: tried out once."""
        name = f"probe-{secrets.token_hex(8)}"
        self._call("put_object", name, Body=b"first")
        try:
            upload = self._call("create_multipart_upload", name)["UploadId"]
            part = self._call("upload_part", name, UploadId=upload, PartNumber=1, Body=b"second")
            parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
            self._call("complete_multipart_upload", name, UploadId=upload, MultipartUpload=parts, IfNoneMatch="*")
        except FileExistsError:
            self._call("abort_multipart_upload", name, UploadId=upload)
            return True
        finally:
            self.delete(name)
        return False

    def _call(self, method: str, name: str | None = None, **arguments: Any) -> dict[str, Any]:
        """One request of S3's interface, about the object `name` if one is given."""
        key = {} if name is None else {"Key": f"{self._prefix}{name}"}
        found: dict[str, Any] = self._persist(lambda: self._fs.call_s3(method, Bucket=self.bucket, **key, **arguments))
        return found

    def _persist(self, operation: Callable[[], T]) -> T:
        def translated() -> T:
            with as_oserror(missing_bucket=OSError(errno.ENODEV, f"there is no bucket {self.bucket!r} any more")):
                return operation()

        return self._patience(translated, endpoint() or "AWS S3")

    def _path(self, name: str) -> str:
        return f"{self.bucket}/{self._prefix}{name}"


def _part_size(size: int) -> int:
    """Bytes of a part of an object of `size` bytes, of which S3 takes ten thousand at most."""
    return max(_PART, -(-size // _MOST_PARTS))


def s3_file_system(attempts: int, *, broken_replies: int = 0) -> Any:
    """s3fs without its listing cache, which hides what others wrote, even from `exists`.

    Args:
        attempts: at each request, with waits that grow from half a second to ten.
        broken_replies: how often a reply that breaks off is asked for again.

    Raises:
        StoreError: an AWS variable holds what would not work, and would be shown in other libraries' messages.
    """
    from s3fs import S3FileSystem

    _check_environment()
    file_system = S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs={
            "retries": {"total_max_attempts": attempts, "mode": "standard"},
            "connect_timeout": 5,
            "read_timeout": 60,
        },
    )
    file_system.retries = 1 + broken_replies
    return file_system


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
