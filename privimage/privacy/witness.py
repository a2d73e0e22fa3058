"""Heads of ledgers in a second place, which can only grow: so that a ledger that was cut is found out.

    heads/<ledger>/<sequence>-<sha256 of that entry>

The place is a store of its own, named by the environment variable PRIVIMAGE_LEDGER_WITNESS (a folder or s3:// URL, best one
that the data steward holds). Without the variable nothing is kept, and nothing is checked. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

from privimage.errors import LedgerBroken
from privimage.privacy.entry import Entry
from privimage.store.files import Store

__all__ = ["VARIABLE", "Witness", "check_head"]

VARIABLE = "PRIVIMAGE_LEDGER_WITNESS"


class Witness:
    """What the second place knows of one ledger."""

    def __init__(self, ledger: str) -> None:
        url = os.environ.get(VARIABLE)
        self._ledger = ledger
        self._store = _open(url) if url else None

    def check(self, entries: Sequence[Entry]) -> None:
        """Raise LedgerBroken if the place has seen entries that are not there now, or are others."""
        if self._store is None:
            return
        for name in self._store.list(f"heads/{self._ledger}"):
            sequence, _, digest = name.rsplit("/", 1)[-1].partition("-")
            if not sequence.isdigit():
                raise LedgerBroken(f"{self._store.url} holds {name}, which is no head of a ledger: move it away.")
            check_head(self._ledger, entries, int(sequence), digest)

    def note(self, entry: Entry) -> None:
        """Keep the head that an entry is."""
        if self._store is not None:
            self._store.create(f"heads/{self._ledger}/{entry.sequence:06d}-{entry.digest}", b"")


def check_head(ledger: str, entries: Sequence[Entry], sequence: int, digest: str) -> None:
    """Raise LedgerBroken unless the entry of this number is there and has this digest."""
    if sequence >= len(entries):
        raise LedgerBroken(
            f"Ledger {ledger} ends with entry {len(entries) - 1:06d}, but once had entry {sequence:06d}: it was cut, or an old copy "
            "was restored. Restore the whole ledger from a backup."
        )
    if entries[sequence].digest != digest:
        raise LedgerBroken(
            f"Ledger {ledger}: entry {sequence:06d} is another than there once was ({digest[:16]}…): restore it from a backup."
        )


@lru_cache(maxsize=8)
def _open(url: str) -> Store:
    return Store.open(url)
