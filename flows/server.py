"""Whether the Prefect server is one that these flows work with."""

from __future__ import annotations

from prefect.client.orchestration import get_client

from privimage.errors import InputError

__all__ = ["OLDEST", "check_server"]

OLDEST = (3, 8)


def check_server() -> None:
    """Raise InputError if the server is older than what these flows were tested with."""
    with get_client(sync_client=True) as client:
        found = client.api_version()
        url = client.api_url
    parts = tuple(int(part) for part in found.split(".")[:2])
    if parts < OLDEST:
        raise InputError(
            f"The Prefect server at {url} is version {found}, expected {'.'.join(map(str, OLDEST))} or newer: upgrade it."
        )
