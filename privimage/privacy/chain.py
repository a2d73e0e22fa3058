"""The ledger's entries: numbered objects, each written once, each naming the digest of the one before.

    ledger/<ledger id>/entries/000000.json    {"format", "sequence", "id", "kind", "previous", "written", "body"}

What the kinds of entries mean is said in `privimage.privacy.ledger`; here they are only kept: nothing is lost, changed,
reordered, contradicted or written twice without being noticed. No torch.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from privimage.errors import LedgerBroken, PrivacyRefused
from privimage.privacy.entry import Entry, check_body, entry_bytes, read_entry
from privimage.privacy.witness import Witness
from privimage.store.files import Store

__all__ = ["Chain"]

# Clocks of machines that share a ledger differ by less than this.
CLOCK_TOLERANCE = timedelta(minutes=10)
_READS_AT_ONCE = 16
_LARGEST_RACE = 200


class Chain:
    """The entries of one ledger. Reads are verified; the verified prefix is kept, so that it is read once.

    Any number of processes may append to one chain; an object of this class serves one thread.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._prefix = f"ledger/{name}/entries"
        self._entries: list[Entry] = []
        # Of each reservation in these entries: 'open', or the kind of the entry that ended it.
        self._reservations: dict[str, str] = {}
        self._witness = Witness(name)
        self._witnessed = -1

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order, chain verified.

        Raises:
            LedgerBroken: a number is missing, an entry was edited, or one is of a newer format; or there were more once.
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
            self._accept(self._verified(raw))
        if self._witnessed != len(self._entries):
            self._witness.check(self._entries)
            self._witnessed = len(self._entries)
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
            raw = entry_bytes(
                sequence=len(entries),
                id=identity,
                kind=kind,
                previous=entries[-1].digest if entries else "",
                written=self._now(entries),
                body=body(entries) if callable(body) else body,
            )
            entry = self._verified(raw)  # before it is written: what no reader accepts would end the ledger
            if self._store.create(self._file(len(entries)), raw):
                self._witness.note(entry)
                self._accept(entry)
                return entry
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
        """The next entry, once its form, its link to the one before and what it refers to were checked."""
        number = len(self._entries)
        where = f"Ledger {self._name}, entry {number:06d}"
        entry = read_entry(raw, where)
        previous = self._entries[-1].digest if self._entries else ""
        if entry.sequence != number or entry.previous != previous:
            raise LedgerBroken(
                f"{where} does not continue the chain: it, or the entry before it, was changed or replaced."
            )
        if (entry.kind == "grant") != (number == 0):
            raise LedgerBroken(f"{where} is a {entry.kind!r}: a ledger has one grant, and it comes first.")
        check_body(entry, where)
        if entry.id in self._reservations:
            raise LedgerBroken(f"{where} repeats the id of another reservation: it was changed or replaced.")
        about = entry.body.get("reservation")
        if about is not None and self._reservations.get(about) != "open":
            raise LedgerBroken(
                f"{where} is a {entry.kind!r} of reservation {about}, which is {self._reservations.get(about, 'absent')} "
                "by then: it was changed; restore it from a backup."
            )
        paid = entry.body["plan"]["builds_on"] if entry.kind == "reserve" else ()
        if any(self._reservations.get(earlier, "void") == "void" for earlier in paid):
            raise LedgerBroken(f"{where} builds on a reservation that never paid: it was changed or replaced.")
        return entry

    def _accept(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.kind == "reserve":
            self._reservations[entry.id] = "open"
        elif entry.kind in ("settle", "void"):
            self._reservations[entry.body["reservation"]] = entry.kind

    def _file(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.json"

    def _number(self, name: str) -> int:
        stem = name.rsplit("/", 1)[-1].removesuffix(".json")
        number = int(stem) if stem.isdecimal() and stem.isascii() else -1
        if number < 0 or name != self._file(number):
            raise LedgerBroken(f"Ledger {self._name}: {name} is no ledger entry; move it away.")
        return number
