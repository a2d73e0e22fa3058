"""Is a ledger shorter than it once was? What the store holds besides it tells.

An append-only chain that is cut at its end, or restored from an old copy, is whole in itself, and what it forgot would be
granted again. But artifacts name the entries that paid for them, and certificates the digests of all entries of their time.
So a ledger is compared with both before it is believed: by `ledger verify`, before each charge, and by housekeeping. What was
charged and never published leaves no such trace: for that, heads are kept outside of the store (`privacy/witness.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from privimage.errors import LedgerBroken
from privimage.pipeline.table import STAGES
from privimage.privacy.ledger import Ledger
from privimage.release.certificate import Certificate
from privimage.store.artifacts import Artifact, find
from privimage.store.files import Store

__all__ = ["check_not_rolled_back", "ledgers_of"]


def ledgers_of(store: Store) -> list[Ledger]:
    """All ledgers of a store, by name."""
    names = sorted({name.split("/")[1] for name in store.list("ledger") if "/entries/" in name})
    return [Ledger(store, name) for name in names]


def check_not_rolled_back(store: Store) -> None:
    """Raise unless the ledgers hold every entry that an artifact or a certificate of this store names.

    Raises:
        LedgerBroken: entries are missing, or are others than there once were; or a chain is not whole.
    """
    # In this order: an entry is written before the artifact that names it, and another process may be doing so now.
    paid, released = _paid(store), _of(store, "release")
    held = {ledger.dataset_id: ledger.entries() for ledger in ledgers_of(store)}
    reserved = {entry.id for entries in held.values() for entry in entries if entry.kind == "reserve"}
    for artifact in paid:
        missing = [entry for entry in artifact.manifest.reservations if entry not in reserved]
        if missing:
            raise LedgerBroken(
                f"Artifact {artifact.ref.stage} {artifact.ref.key[:12]} was paid for by ledger entry {missing[0]}, which no ledger "
                f"of {store.url} holds: entries were lost, or an old copy was restored. Restore the whole ledger from a backup."
            )
    for artifact in released:
        stated = Certificate.read(artifact).ledger
        digests = [entry.digest for entry in held.get(stated.dataset, ())]
        certified = [entry.sha256 for entry in stated.entries]
        if digests[: len(certified)] != certified:
            raise LedgerBroken(
                f"The certificate of release {artifact.ref.key[:12]} names {len(certified)} entries of ledger {stated.dataset}, "
                f"which has {len(digests)}, or others: entries were lost or changed. Restore the whole ledger from a backup."
            )


def _paid(store: Store) -> list[Artifact]:
    return [artifact for stage in STAGES if stage.charge for artifact in _of(store, stage.name)]


def _of(store: Store, stage: str) -> Sequence[Artifact]:
    keys = sorted({name.split("/")[2] for name in store.list(f"artifacts/{stage}") if name.endswith("/manifest.json")})
    return [artifact for key in keys if (artifact := find(store, stage, key, False))]
