"""The Prefect server of the tests of flows, for tests that look at it through a browser."""

from tests.flows.conftest import server

__all__ = ["server"]
