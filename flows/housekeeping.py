"""A store's ledgers verified, and what nobody needs any more found, or deleted."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.forms import DEFAULT_STORE_URL, StoreUrl
from flows.server import check_server
from tasks.housekeeping import collect_garbage, verify_ledgers

__all__ = ["housekeeping"]


def _name() -> str:
    return "housekeeping-dry-run" if flow_run.parameters["dry_run"] else "housekeeping"


@flow(name="housekeeping", flow_run_name=_name, persist_result=False)
def housekeeping(
    *,
    dry_run: bool = True,
    keep_days: Annotated[float, Field(ge=1, le=3650)] = 30,
    store: StoreUrl = DEFAULT_STORE_URL,
) -> State[Any]:
    """Verify every ledger; find artifacts, checkpoints and half-written files that nobody needs; delete them if asked to.

    What privacy budget paid for is never deleted, nor what it or a release was made of.

    Args:
        dry_run: Only show what would be deleted.
        keep_days: What was made, or first found, within so many days is kept.
        store: Root URL of the object store: a path, file:///path or s3://bucket/prefix.
    """
    check_server()
    ledgers = verify_ledgers(store)
    found, deleted = collect_garbage(store, keep_days, dry_run)
    return Completed(
        message=f"{ledgers} ledgers are whole; {found} folders are not needed, {deleted} of them were deleted."
    )
