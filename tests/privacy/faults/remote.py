"""An S3 server on the loopback interface, for schedules outside of pytest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.request import Request, urlopen

import moto.backends
import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from privimage.store.backends import names_below
from privimage.store.s3 import S3Backend
from tests.privacy.faults.storage import Below

__all__ = ["ServersMemory", "s3_bucket"]

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_bucket() -> Iterator[S3Backend]:
    """An empty bucket; the server and the AWS variables last as long as the block."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        with pytest.MonkeyPatch.context() as patch:
            # moto looks for 180 folders of its own at each request: a fifth of the time.
            modules = tuple(moto.backends.list_of_moto_modules())
            patch.setattr(moto.backends, "list_of_moto_modules", lambda: modules)
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
                patch.delenv(name, raising=False)
            for name, value in {**_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
                patch.setenv(name, value)
            with urlopen(Request(f"{endpoint}/faults", method="PUT")):
                yield S3Backend("faults", "")
    finally:
        server.stop()


class ServersMemory(Below):
    """The same objects as the server in this process holds them, without a request: what the witness reads."""

    def __init__(self, bucket: S3Backend, folder: str, fixed: Mapping[str, bytes]) -> None:
        super().__init__(bucket, folder, fixed)
        (account,) = (account["aws"] for account in s3_backends.values() if bucket.bucket in account["aws"].buckets)
        self._held = account.buckets[bucket.bucket].keys

    def read(self, name: str) -> bytes:
        if name in self._fixed:
            return self._fixed[name]
        held = self._held.get(f"{self._folder}/{name}")
        if held is None:
            raise FileNotFoundError(name)
        return bytes(held.value)

    def names(self, prefix: str) -> list[str]:
        return names_below(list(self._held), self._folder, prefix)
