"""Housekeeping as Prefect tasks: what was found is shown as tables."""

from __future__ import annotations

from dataclasses import asdict

from prefect import task
from prefect.artifacts import create_table_artifact

from privimage.running.housekeeping import delete, find_garbage, ledger_states
from privimage.store.files import Store
from tasks.policies import SMALL

__all__ = ["collect_garbage", "verify_ledgers"]


@task(name="ledgers", **SMALL)
def verify_ledgers(store: str) -> int:
    """Every chain of entries is whole, or this fails; returns how many there are."""
    states = ledger_states(Store.open(store, wait=True))
    rows = [
        {
            "ledger": state.dataset,
            "entries": state.entries,
            "granted epsilon": state.granted,
            "of the grant": f"{state.share:.1%}",
            "open reservations": state.open_reservations,
        }
        for state in states
    ]
    create_table_artifact(key="ledgers", table=rows, description=f"Ledgers of {store}: all chains are whole")
    return len(states)


@task(name="garbage", **SMALL)
def collect_garbage(store: str, keep_days: float, dry_run: bool) -> tuple[int, int]:
    """Find what is not needed, and delete what is due unless it is a dry run; returns how many were found and deleted."""
    opened = Store.open(store, wait=True)
    found = find_garbage(opened, keep_days=keep_days)
    due = sum(item.due for item in found)
    text = f"Not needed in {store}: {len(found)} folders, {due} of them for {keep_days:g} days or more"
    create_table_artifact(key="garbage", table=[asdict(item) for item in found], description=text)
    return len(found), 0 if dry_run else len(delete(opened, found))
