"""Many writers at once, each with a plan of its own, for a budget that holds a few of them."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass

from privimage.errors import BudgetExceeded
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.ledger import Ledger
from privimage.running.charging import pay
from privimage.store.backends import Backend, LocalBackend
from privimage.store.files import Store
from privimage.store.s3 import S3Backend
from tests.privacy.faults.bench import Bench
from tests.privacy.faults.storage import Below

__all__ = ["WRITERS", "Race", "race"]

WRITERS = 32
_TARGETS = 1.5
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class Race:
    """How many got what they asked for, and how many do if they ask one after the other."""

    winners: int
    expected: int
    errors: tuple[str, ...]
    within_grant: bool
    seconds: float

    @property
    def sound(self) -> bool:
        return self.winners == self.expected and self.within_grant and not self.errors


def race(bench: Bench, bucket: S3Backend | None = None, writers: int = WRITERS) -> Race:
    """Let `writers` threads reserve at once, in a folder or in a bucket; no schedule, whoever is faster."""
    begun = time.monotonic()
    expected = sum(_reserves(bench, _fresh_store(bench, None), [f"{number:064x}" for number in range(writers)]))
    store = _fresh_store(bench, bucket)
    start, won, errors = threading.Barrier(writers), [False] * writers, [""] * writers

    def write(number: int) -> None:
        start.wait()
        try:
            won[number] = any(_reserves(bench, store, [f"{number:064x}"]))
        except Exception as error:  # noqa: BLE001  told by the race
            errors[number] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = bench.open_ledger(store)
    reservations, spent, grant = ledger.reservations(), ledger.spent(), ledger.grant_entry
    total = epsilon_of([entry.event for entry in reservations.values()], grant.body["delta"]) if grant else 0.0
    return Race(
        winners=sum(won),
        expected=expected,
        errors=tuple(error for error in errors if error),
        within_grant=(
            grant is not None
            and len(reservations) == sum(won)
            and spent.share <= _ROUNDING
            and total <= grant.body["epsilon"] * _ROUNDING
        ),
        seconds=time.monotonic() - begun,
    )


def _fresh_store(bench: Bench, bucket: S3Backend | None) -> Store:
    name = f"race-{time.monotonic_ns()}"
    backend: Backend
    if bucket is None:
        shutil.copytree(bench.template, bench.folder / name)
        backend = LocalBackend(bench.folder / name)
    else:
        backend = Below(bucket, name, bench.fixed)
    store = Store(url=f"faults://{name}", backend=backend)
    bench.grant(store, _TARGETS)
    return store


def _reserves(bench: Bench, store: Store, keys: list[str]) -> list[bool]:
    """Charge the query of each key; which of them the budget held."""
    ledger: Ledger = bench.open_ledger(store)
    held = []
    for key in keys:
        try:
            charge = bench.charge(store, key, ledger)
            pay("query", key, charge, ledger, run_name="race", latest_checkpoint=lambda: 0, random=SecretRandom())
        except BudgetExceeded:
            held.append(False)
        else:
            held.append(True)
    return held
