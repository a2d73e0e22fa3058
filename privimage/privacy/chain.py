"""The ledger's entries: numbered objects, each written once, each naming the digest of the one before.

    ledger/<ledger id>/entries/000000.json    {"format", "sequence", "id", "kind", "previous", "written", "body"}

What the kinds of entries mean is said in `privimage.privacy.ledger`; here they are only kept: nothing is lost, changed,
reordered or written twice without being noticed. No torch.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dp_accounting as dpa

from privimage.errors import LedgerBroken, PrivacyRefused
from privimage.privacy.accounting import event_from_json
from privimage.store.files import Store

__all__ = ["FORMAT", "KINDS", "Chain", "Entry"]

FORMAT = 1
# What the body of each kind of entry holds, at least.
KINDS: Mapping[str, frozenset[str]] = {
    "grant": frozenset({"epsilon", "delta", "order", "adjacency", "unit", "num_images", "dataset"}),
    "reserve": frozenset(
        {"stage", "key", "event", "plan", "num_images", "run", "restart_allowance", "checkpoint_steps"}
    ),
    "pause": frozenset({"reservation", "attempt", "step"}),
    "resume": frozenset({"reservation", "attempt", "lost_steps"}),
    "settle": frozenset({"reservation", "artifact"}),
    "void": frozenset({"reservation", "reason"}),
    "close": frozenset({"plan", "reason"}),
}
# Clocks of machines that share a ledger differ by less than this.
CLOCK_TOLERANCE = timedelta(minutes=10)
_READS_AT_ONCE = 16
_LARGEST_RACE = 200


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger, as read back and verified."""

    sequence: int
    id: str
    kind: str
    previous: str
    written: str
    body: Mapping[str, Any]
    digest: str

    @property
    def event(self) -> dpa.DpEvent:
        """The mechanism of a `reserve` entry."""
        return event_from_json(self.body["event"])


class Chain:
    """The entries of one ledger. Reads are verified; the verified prefix is kept, so that it is read once.

    Any number of processes may append to one chain; an object of this class serves one thread.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._prefix = f"ledger/{name}/entries"
        self._entries: list[Entry] = []

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order, chain verified.

        Raises:
            LedgerBroken: a number is missing, an entry was edited, or one is of a newer format.
        """
        numbers = sorted(self._number(name) for name in self._store.list(self._prefix))
        for expected, found in enumerate(numbers):
            if expected != found:
                raise LedgerBroken(f"Ledger {self._name}: entry {expected:06d} is missing; restore it from a backup.")
        if len(numbers) < len(self._entries):
            raise LedgerBroken(f"Ledger {self._name}: entry {len(numbers):06d} was there and is gone; restore it.")
        new = range(len(self._entries), len(numbers))
        if len(new) < _READS_AT_ONCE:
            raws = [self._store.read(self._file(number)) for number in new]
        else:
            with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
                raws = list(threads.map(lambda number: self._store.read(self._file(number)), new))
        for raw in raws:
            self._entries.append(self._verified(raw))
        return tuple(self._entries)

    def append(
        self,
        kind: str,
        body: dict[str, Any] | Callable[[Sequence[Entry]], dict[str, Any]],
        check: Callable[[Sequence[Entry]], Entry | None],
    ) -> Entry:
        """Create the next entry; of several writers one wins, the others check again, against the longer chain.

        Args:
            check: raises if the entry must not be written; may return an existing entry that is as good.

        Raises:
            LedgerBroken: the chain is; or this machine's clock is behind the last entry's.
            PrivacyRefused: other writers were faster, again and again.
        """
        identity = secrets.token_hex(8)
        for attempt in range(_LARGEST_RACE):
            entries = self.entries()
            existing = check(entries)
            if existing is not None:
                return existing
            data = {
                "format": FORMAT,
                "sequence": len(entries),
                "id": identity,
                "kind": kind,
                "previous": entries[-1].digest if entries else "",
                "written": self._now(entries),
                "body": body(entries) if callable(body) else body,
            }
            raw = json.dumps(data, sort_keys=True, indent=1, allow_nan=False).encode()
            if self._store.create(self._file(len(entries)), raw):
                self._entries.append(self._verified(raw))
                return self._entries[-1]
            time.sleep(random.uniform(0, min(0.02 * (attempt + 1), 0.5)))
        raise PrivacyRefused(
            f"Ledger {self._name}: {_LARGEST_RACE} writers in a row were faster; nothing was charged, try again."
        )

    def _now(self, entries: Sequence[Entry]) -> str:
        now = datetime.now(UTC)
        if entries and now + CLOCK_TOLERANCE < datetime.fromisoformat(entries[-1].written):
            raise LedgerBroken(
                f"Ledger {self._name}: entry {entries[-1].sequence:06d} was written at {entries[-1].written}, but this "
                f"machine's clock says {now.isoformat(timespec='seconds')}: set the clock. Nothing was charged."
            )
        return now.isoformat(timespec="milliseconds")

    def _verified(self, raw: bytes) -> Entry:
        """The next entry, once its form and its link to the one before were checked."""
        number = len(self._entries)
        where = f"Ledger {self._name}, entry {number:06d}"
        try:
            data = json.loads(raw)
            entry = Entry(
                sequence=data["sequence"],
                id=data["id"],
                kind=data["kind"],
                previous=data["previous"],
                written=data["written"],
                body=data["body"],
                digest=hashlib.sha256(raw).hexdigest(),
            )
            version = data["format"]
            if datetime.fromisoformat(entry.written).tzinfo is None:
                raise ValueError(f"{entry.written} has no time zone")
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerBroken(f"{where} cannot be read: {error}; restore it from a backup.") from error
        if version != FORMAT or entry.kind not in KINDS:
            raise LedgerBroken(
                f"{where} is a {entry.kind!r} of format {version}, which this version does not know: update."
            )
        previous = self._entries[-1].digest if self._entries else ""
        if entry.sequence != number or entry.previous != previous:
            raise LedgerBroken(
                f"{where} does not continue the chain: it, or the entry before it, was changed or replaced."
            )
        if (entry.kind == "grant") != (number == 0):
            raise LedgerBroken(f"{where} is a {entry.kind!r}: a ledger has one grant, and it comes first.")
        missing = KINDS[entry.kind] - set(entry.body)
        if missing:
            raise LedgerBroken(f"{where} lacks {', '.join(sorted(missing))}: it was changed; restore it from a backup.")
        if entry.kind == "reserve":
            try:
                event_from_json(entry.body["event"])
            except LedgerBroken as error:
                raise LedgerBroken(f"{where} cannot be used: {error}") from error
        return entry

    def _file(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.json"

    def _number(self, name: str) -> int:
        stem = name.rsplit("/", 1)[-1].removesuffix(".json")
        if not stem.isdigit():
            raise LedgerBroken(f"Ledger {self._name}: {name} is no ledger entry; move it away.")
        return int(stem)
