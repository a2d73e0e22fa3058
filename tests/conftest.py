"""Shared by all tests: an S3 server on the loopback interface, and stores of every kind."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer

from privimage.store.files import Store

# Threads that wait for each other cost more than they save on networks as small as the tests': 40 s become 10.
# Set before the fixtures are imported, because torch reads it when it is.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.pipeline_fixtures import (
    finished,
    finished_copy,
    granted,
    granted_copy,
    portraits,
    pretrained,
    pretrained_copy,
    privimage,
    tiny_config,
)

__all__ = [
    "finished",
    "finished_copy",
    "granted",
    "granted_copy",
    "portraits",
    "pretrained",
    "pretrained_copy",
    "privimage",
    "tiny_config",
]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server in memory; the AWS variables point to it until the session ends."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        patch.delenv("AWS_PROFILE", raising=False)
        yield endpoint
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """Name of a new, empty bucket."""
    bucket = f"bucket-{secrets.token_hex(6)}"
    with urlopen(Request(f"{s3_endpoint}/{bucket}", method="PUT")) as reply:
        assert reply.status == 200
    return bucket


@pytest.fixture(params=["file", "memory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new, empty store of each kind."""
    if request.param == "file":
        return (tmp_path / "store").as_uri()
    if request.param == "memory":
        return f"memory://{secrets.token_hex(6)}"
    return f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix"


@pytest.fixture
def store(store_url: str) -> Store:
    """A new, empty store of each kind."""
    return Store.open(store_url)
