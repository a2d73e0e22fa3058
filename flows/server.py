"""Whether the Prefect server is there, and one that these flows work with."""

from __future__ import annotations

import time

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from privimage.errors import InputError

__all__ = ["OLDEST", "PATIENCE", "check_answers", "check_server"]

OLDEST = (3, 8)
PATIENCE = 12.0
"""Seconds in which a server that is just being started may begin to answer."""
_ONE_TRY, _BETWEEN = 5.0, 0.5


def check_answers() -> None:
    """Raise InputError, within 20 seconds, if nobody answers at the configured address; without one there is nothing to ask.

    To be called before a flow is: Prefect itself tries for a minute and a half, and ends in a traceback.
    """
    url = get_current_settings().api.url
    if not url:
        return
    began = time.monotonic()
    while True:
        try:
            # Whatever answers will do; Prefect's own client then sees to certificates, users and what the answer says.
            httpx.get(f"{url}/health", timeout=_ONE_TRY, verify=False)  # noqa: S501 (nothing secret is sent)
            return
        except httpx.InvalidURL as error:
            raise InputError(f"PREFECT_API_URL is {url}, which is no address ({error}): correct it.") from error
        except httpx.HTTPError as error:
            if time.monotonic() - began + _ONE_TRY > PATIENCE:
                raise InputError(
                    f"No Prefect server answers at {url} ({error or type(error).__name__}): start it, or correct PREFECT_API_URL "
                    "(without it, a server of its own is started for the run). Nothing was run."
                ) from error
        time.sleep(_BETWEEN)


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
