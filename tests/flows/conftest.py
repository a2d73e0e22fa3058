"""One Prefect server for all tests of flows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.prefect_server import Server, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with a database of its own; what the tests make on it bears names of their own."""
    with serve(tmp_path_factory.mktemp("prefect")) as running:
        yield running
