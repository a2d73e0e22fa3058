"""Shared by all tests: an S3 server on the loopback interface, and stores of every kind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from privimage.store.files import Store
from privimage.store.s3 import s3_client

if TYPE_CHECKING:
    from tests.flows.prefect_server import Server

# Threads that wait for each other cost more than they save on networks as small as the tests': 40 s become 10.
# Set before the fixtures are imported, because torch reads it when it is.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.moto_process import moto_process
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


# What only real servers can show: make test-s3, make test-stack.
collect_ignore = [
    file
    for file, variable in (
        ("store/test_real_server.py", "PRIVIMAGE_TEST_S3"),
        ("docker/test_stack.py", "PRIVIMAGE_TEST_STACK"),
    )
    if variable not in os.environ
]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server: moto, or the real one that `make test-s3` has started.

    The AWS variables point to it until the session ends.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        endpoint = os.environ.get("PRIVIMAGE_TEST_S3")
        if endpoint is None:
            endpoint = stack.enter_context(moto_process())
            patch.setenv("AWS_ACCESS_KEY_ID", f"key-{secrets.token_hex(8)}")
            patch.setenv("AWS_SECRET_ACCESS_KEY", f"secret-{secrets.token_hex(16)}")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        yield endpoint


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prefect server with a database of its own; what the tests make on it bears names of their own."""
    from tests.flows.prefect_server import serve  # Prefect is loaded where a flow is run

    with serve(tmp_path_factory.mktemp("prefect")) as running:
        yield running


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """Name of a new, empty bucket."""
    bucket = f"bucket-{secrets.token_hex(6)}"
    s3_client(attempts=5).create_bucket(Bucket=bucket)
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
