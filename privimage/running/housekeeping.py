"""What nobody needs any more in a store, and whether its ledgers are whole.

Kept for ever: what privacy budget paid for, all sealed artifacts, and whatever these or a release were made of. Found:

    artifact     public, part of no release and of nothing paid, and older than `keep_days`
    payload      files of an artifact that was never finished, or whose writer lost the race
    checkpoint   of an artifact that is published, or of private training that no open reservation can go on with; of
                 public training that nobody finished
    probe        left by a process that was killed while it tried the storage out

An artifact tells when it was made; the other things do not. They are noted in `housekeeping/` when they are first
found, and deleted only if a later run, `keep_days` after that, finds them again: so nothing that a running stage has
just written is taken away. Everything that is deleted can be made again without a charge.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from privimage.running.rollback import check_not_rolled_back, ledgers_of
from privimage.store.artifacts import Artifact, list_artifacts
from privimage.store.files import Store

__all__ = ["Garbage", "LedgerState", "delete", "find_garbage", "ledger_states"]

_NOTES = "housekeeping/found.json"
Kind = Literal["artifact", "payload", "checkpoint", "probe"]


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One folder of the store that nobody needs; `due`: long enough ago that it may be deleted."""

    kind: Kind
    folder: str
    why: str
    since: str
    due: bool


@dataclass(frozen=True, kw_only=True)
class LedgerState:
    """One ledger whose chain is whole."""

    dataset: str
    entries: int
    granted: float | None
    share: float
    open_reservations: int


def ledger_states(store: Store) -> list[LedgerState]:
    """Every ledger of the store, its chain verified.

    Raises:
        LedgerBroken: an entry is missing, was edited, or cannot be read; or an artifact or a certificate names one that is
            not there.
    """
    check_not_rolled_back(store)
    states = []
    for ledger in ledgers_of(store):
        grant = ledger.grant_entry
        states.append(
            LedgerState(
                dataset=ledger.dataset_id,
                entries=len(ledger.entries()),
                granted=grant.body["epsilon"] if grant else None,
                share=ledger.spent().share if grant else 0.0,
                open_reservations=sum(state == "open" for state in ledger.states().values()),
            )
        )
    return states


def find_garbage(store: Store, *, keep_days: float, now: datetime | None = None) -> list[Garbage]:
    """All that is not needed, whether or not it is due; what was found for the first time is noted.

    Raises:
        ArtifactDamaged: a manifest cannot be read; nothing is called garbage then.
        LedgerBroken: a ledger cannot be read, likewise.
    """
    now = now or datetime.now(UTC)
    artifacts = list_artifacts(store)
    undated = [*_payloads(store, artifacts), *_checkpoints(store, artifacts), *_probes(store)]
    noted = _noted(store)
    since = {folder: noted.get(folder, now.isoformat(timespec="seconds")) for _, folder, _ in undated}
    if since != noted:
        _note(store, since)
    found = [(kind, folder, why, since[folder]) for kind, folder, why in undated]
    for artifact in _unneeded(artifacts):
        folder = f"artifacts/{artifact.ref.stage}/{artifact.ref.key}"
        found.append(("artifact", folder, "part of no release, nothing paid", artifact.manifest.written))
    limit = now - timedelta(days=keep_days)
    return [
        Garbage(kind=kind, folder=folder, why=why, since=when, due=datetime.fromisoformat(when) <= limit)
        for kind, folder, why, when in sorted(found)
    ]


def delete(store: Store, garbage: Iterable[Garbage]) -> list[str]:
    """Delete what is due; return the folders."""
    folders = [item.folder for item in garbage if item.due]
    for folder in folders:
        store.delete(f"{folder}/manifest.json")  # first: no artifact without all of its files is ever visible
        store.delete_tree(folder)
    return folders


def _unneeded(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Public artifacts that nothing was made of that must be kept."""
    by_digest = {(artifact.ref.stage, artifact.ref.digest): artifact for artifact in artifacts}
    waiting = [
        artifact
        for artifact in artifacts
        if artifact.ref.sealed or artifact.manifest.reservations or artifact.ref.stage == "release"
    ]
    kept: set[tuple[str, str]] = set()
    while waiting:
        artifact = waiting.pop()
        place = (artifact.ref.stage, artifact.ref.digest)
        if place in kept:
            continue
        kept.add(place)
        inputs = ((ref.stage, ref.digest) for ref in artifact.manifest.inputs.values())
        waiting += [by_digest[source] for source in inputs if source in by_digest]
    return [artifact for artifact in artifacts if (artifact.ref.stage, artifact.ref.digest) not in kept]


def _payloads(store: Store, artifacts: Sequence[Artifact]) -> list[tuple[Kind, str, str]]:
    used = {
        f"{'private/' if a.ref.sealed else ''}artifacts/{a.ref.stage}/{a.ref.key}/{a.manifest.payload}"
        for a in artifacts
    }
    found: set[str] = set()
    for root in ("artifacts", "private/artifacts"):
        depth = root.count("/") + 4
        parts = [name.split("/") for name in store.list(root)]
        found |= {"/".join(part[:depth]) for part in parts if len(part) > depth}
    return [("payload", folder, "files of no published artifact") for folder in sorted(found - used)]


def _checkpoints(store: Store, artifacts: Sequence[Artifact]) -> list[tuple[Kind, str, str]]:
    published = {(artifact.ref.stage, artifact.ref.key) for artifact in artifacts}
    claimed = {
        (entry.body["stage"], entry.body["key"])
        for ledger in ledgers_of(store)
        for entry in ledger.reservations().values()
        if ledger.states()[entry.id] == "open"
    }
    found: list[tuple[Kind, str, str]] = []
    for root, private in (("checkpoints", False), ("private/checkpoints", True)):
        depth = root.count("/") + 3
        for folder in sorted({"/".join(name.split("/")[:depth]) for name in store.list(root)}):
            stage, key = folder.split("/")[-2:]
            if (stage, key) in published:
                found.append(("checkpoint", folder, "its artifact is published"))
            elif not private:
                found.append(("checkpoint", folder, "training that nobody finished"))
            elif (stage, key) not in claimed:
                found.append(("checkpoint", folder, "no open reservation goes on with it"))
    return found


def _probes(store: Store) -> list[tuple[Kind, str, str]]:
    names = {name.split("/")[0] for name in store.list("")}
    return [("probe", name, "a process was killed here") for name in sorted(names) if name.startswith("probe-")]


def _noted(store: Store) -> dict[str, str]:
    try:
        return {str(folder): str(when) for folder, when in json.loads(store.read(_NOTES)).items()}
    except (FileNotFoundError, ValueError):
        return {}


def _note(store: Store, since: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        file.write_text(json.dumps(since, indent=1))
        store.upload(file, _NOTES)
