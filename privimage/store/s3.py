"""S3 as storage below a `Store`: AWS, or a server that speaks its protocol and honours `If-None-Match` on PUT.

Everything that was learnt the hard way about s3fs is kept here: no listing cache, one PUT per create, every spelling
of "exists already", and few retries while opening.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privimage.store.backends import names_below

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["S3Backend"]

# Above this S3 needs a multipart upload, whose completion some servers (Ceph 16) do not make conditional.
_LARGEST_PUT = 5 * 2**30


class S3Backend:
    """A bucket, below a prefix.

    Endpoint and credentials come from the usual AWS variables; network faults are retried for about a minute.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self._prefix = prefix
        self._root = f"{bucket}/{prefix}".rstrip("/")
        self._fs = _s3_file_system(attempts=10)

    def check(self) -> None:
        """List one name, with few retries, so that a wrong URL or key is told at once.

        Raises:
            OSError: FileNotFoundError (no bucket), PermissionError, ConnectionError, or another.
        """
        hasty = _s3_file_system(attempts=2)
        hasty.retries = 1
        with _botocore_as_oserror():
            hasty.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=f"{self._prefix}/".lstrip("/"), MaxKeys=1)

    def read(self, name: str) -> bytes:
        with _botocore_as_oserror():
            # One request: with more, s3fs asks for the size first.
            return bytes(self._fs.cat_file(self._path(name), max_concurrency=1))

    def create(self, name: str, data: bytes) -> bool:
        if len(data) >= _LARGEST_PUT:
            raise OSError(errno.EFBIG, "more than 5 GiB cannot be created in one atomic request")
        try:
            with _botocore_as_oserror():
                self._fs.pipe_file(self._path(name), data, mode="create", chunksize=_LARGEST_PUT)
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs says FileExistsError only if the server names the failed condition, which not all do.
            response = getattr(error.__cause__, "response", {})
            if response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                return False
            raise
        return True

    def put(self, local: Path, name: str) -> None:
        with _botocore_as_oserror():
            self._fs.put_file(str(local), self._path(name))

    def get(self, name: str, local: Path) -> None:
        with _botocore_as_oserror():
            self._fs.get_file(self._path(name), str(local))

    def size(self, name: str) -> int:
        with _botocore_as_oserror():
            info = self._fs.info(self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(name)
        return int(info["size"])

    def names(self, prefix: str) -> list[str]:
        with _botocore_as_oserror():
            found = self._fs.find(self._path(prefix))
        return names_below(found, self._root, prefix)

    def delete(self, name: str) -> None:
        with _botocore_as_oserror():
            self._fs.rm_file(self._path(name))

    def delete_tree(self, prefix: str) -> None:
        # One by one: the bulk request needs checksums that servers other than AWS may not know.
        for name in self.names(prefix):
            self.delete(name)

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        options: dict[str, Any] = {
            "connect_timeout": 5,
            "request_timeout": 60,
            "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=10),
        }
        region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
        if endpoint := self.endpoint():
            scheme, _, host = endpoint.rpartition("://")
            options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
            region = region or "us-east-1"
        return S3FileSystem(**options, **({"region": region} if region else {})), self._root

    @staticmethod
    def endpoint() -> str | None:
        """The server's address from the environment; None = AWS, or what the AWS configuration file says."""
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


def _s3_file_system(attempts: int) -> Any:
    """s3fs without its listing cache, which hides what others wrote, even from `exists`."""
    from s3fs import S3FileSystem

    return S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs={
            "retries": {"max_attempts": attempts, "mode": "standard"},
            "connect_timeout": 5,
            "read_timeout": 60,
        },
    )


@contextmanager
def _botocore_as_oserror() -> Iterator[None]:
    """Errors that never reached the server, as the OSError a local disk would have raised."""
    from botocore.exceptions import BotoCoreError, HTTPClientError, NoCredentialsError, PartialCredentialsError
    from botocore.exceptions import ConnectionError as NoConnection

    try:
        yield
    except (HTTPClientError, NoConnection) as error:
        raise ConnectionError(str(error)) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(str(error)) from error
    except BotoCoreError as error:
        raise OSError(errno.EINVAL, str(error)) from error
