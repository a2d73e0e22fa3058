"""Verification of a release, step by step, in plain words; anybody can run it, the ledger makes it stronger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from privimage.errors import LedgerBroken, StoreError
from privimage.privacy.accounting import epsilon_of, event_from_json
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import RELATION
from privimage.release.certificate import SCHEMA
from privimage.release.export import SUMS, sums
from privimage.store.files import Store

__all__ = ["Check", "read_release", "verify_release"]

REQUIRED = ("certificate.json", "report.html", "samples.png", "synthetic.parquet")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One step: what was looked at, how it came out, and why."""

    step: str
    outcome: Literal["passed", "failed", "skipped"]
    why: str


def read_release(release: Store) -> dict[str, bytes]:
    """All files of a release folder, opened as a store of its own."""
    names = release.list("")
    if SUMS not in names:
        raise StoreError(f"{release.url} is no release: it has no {SUMS}.")
    return {name: release.read(name) for name in names}


def verify_release(files: Mapping[str, bytes], ledgers: Store | None) -> list[Check]:
    """Check a release's files against each other, its epsilon against its mechanisms, and both against the ledger.

    Args:
        files: content of every file in the release folder, SHA256SUMS included.
        ledgers: the store with the ledger, or None if it is not at hand.
    """
    checks = [_check_files(files)]
    try:
        certificate = json.loads(files["certificate.json"])
        checks += [
            _check_listed(files, certificate),
            _check_promise(certificate),
            _check_epsilon(certificate),
            _check_nothing_private(files),
            _check_ledger(certificate, ledgers),
        ]
    except (KeyError, TypeError, ValueError) as error:
        checks.append(Check(step="certificate", outcome="failed", why=f"certificate.json cannot be read: {error!r}"))
    return checks


def _check(step: str, ok: bool, good: str, bad: str) -> Check:
    return Check(step=step, outcome="passed" if ok else "failed", why=good if ok else bad)


def _check_files(files: Mapping[str, bytes]) -> Check:
    others = {name: data for name, data in files.items() if name != SUMS}
    if files.get(SUMS) == sums(others) and all(name in others for name in REQUIRED):
        return Check(step="files", outcome="passed", why=f"{len(others)} files have the digests that {SUMS} lists")
    lines = files.get(SUMS, b"").decode(errors="replace").splitlines()
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    wrong = [name for name in others if stated.get(name) != hashlib.sha256(others[name]).hexdigest()]
    missing = [name for name in {*stated, *REQUIRED} if name not in others]
    why = f"changed or unlisted: {', '.join(wrong) or 'none'}; missing: {', '.join(sorted(missing)) or 'none'}"
    return Check(step="files", outcome="failed", why=why if wrong or missing else f"{SUMS} itself was changed")


def _check_listed(files: Mapping[str, bytes], certificate: Mapping[str, Any]) -> Check:
    listed = certificate["files"]
    wrong = [name for name, digest in listed.items() if hashlib.sha256(files.get(name, b"")).hexdigest() != digest]
    return _check(
        "certified files",
        not wrong and set(listed) == set(files) - {SUMS, "certificate.json"},
        "the certificate was made for exactly these files",
        f"the certificate was made for other files: {', '.join(wrong) or 'the lists differ'}",
    )


def _check_promise(certificate: Mapping[str, Any]) -> Check:
    stated = (certificate["schema"], certificate["guarantee"], certificate["relation"])
    return _check(
        "promise",
        stated == (SCHEMA, "differential privacy", RELATION.name),
        f"differential privacy under {RELATION.name}",
        f"schema {stated[0]}, guarantee {stated[1]!r}, relation {stated[2]}: no promise that this version can vouch for",
    )


def _check_epsilon(certificate: Mapping[str, Any]) -> Check:
    events = [event_from_json(mechanism["event"]) for mechanism in certificate["mechanisms"]]
    found = epsilon_of(events, certificate["delta"])
    lower = certificate["epsilon_certified_interval"]["lower"]
    stages = {mechanism["stage"] for mechanism in certificate["mechanisms"]}
    ok = lower <= found <= certificate["epsilon"] * (1 + 1e-9) and {"query", "finetune"} <= stages
    return _check(
        "epsilon",
        ok,
        f"the mechanisms cost epsilon {found:.6g} at delta {certificate['delta']:g}, within the stated {certificate['epsilon']:g}",
        f"the mechanisms of {', '.join(sorted(stages))} cost epsilon {found:.6g}, stated is {certificate['epsilon']:g} "
        f"(certified lower bound {lower:.6g})",
    )


def _check_nothing_private(files: Mapping[str, bytes]) -> Check:
    named = [name for name, data in files.items() if b"private/artifacts" in data or b"private/checkpoints" in data]
    return _check(
        "private side",
        not named,
        "no file refers to the private side of the store",
        f"{', '.join(named)} refers to the private side",
    )


def _check_ledger(certificate: Mapping[str, Any], ledgers: Store | None) -> Check:
    dataset = certificate["ledger"]["dataset"]
    if ledgers is None or not ledgers.list(f"ledger/{dataset}"):
        return Check(
            step="ledger", outcome="skipped", why=f"ledger {dataset} is not at hand (give its store with --store)"
        )
    try:
        entries = {entry.id: entry for entry in Ledger(ledgers, dataset).entries()}
    except LedgerBroken as error:
        return Check(step="ledger", outcome="failed", why=str(error))
    listed = [mechanism["ledger_entry"] for mechanism in certificate["mechanisms"]] + certificate["ledger"]["entries"]
    wrong = [item["id"] for item in listed if item["id"] not in entries or entries[item["id"]].digest != item["sha256"]]
    other = [
        mechanism["ledger_entry"]["id"]
        for mechanism in certificate["mechanisms"]
        if mechanism["ledger_entry"]["id"] not in wrong
        and event_from_json(mechanism["event"]) != entries[mechanism["ledger_entry"]["id"]].event
    ]
    return _check(
        "ledger",
        not wrong and not other,
        f"the chain of {len(entries)} entries is whole and holds every mechanism of the certificate",
        f"the ledger does not hold, or holds otherwise: {', '.join(wrong + other)}",
    )
