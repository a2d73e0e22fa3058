"""A certificate against the store that made it: its ledger, what it published, and what that says of its noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from privimage.errors import LedgerBroken
from privimage.payloads import GUARANTEE, guarantee_said
from privimage.privacy.budget import spent_by, without_guarantee
from privimage.privacy.entry import Entry
from privimage.privacy.ledger import Ledger
from privimage.release.certificate import BEFORE_FINETUNE, Certificate, Plan, granted_by, listed_as
from privimage.release.check import SAME_EPSILON, Check, checked
from privimage.store.artifacts import list_artifacts
from privimage.store.files import Store

__all__ = ["check_ledger", "check_store", "knows"]


def check_ledger(certificate: Certificate, ledgers: Store | None) -> Check:
    dataset = certificate.ledger.dataset
    if ledgers is None:
        return Check(
            step="ledger", outcome="skipped", why=f"ledger {dataset} is not at hand (give its store with --store)"
        )
    if not ledgers.list(f"ledger/{dataset}"):
        return _check_absent(certificate, ledgers)
    try:
        ledger = Ledger(ledgers, dataset)
        entries, counting = ledger.entries(), ledger.reservations()
    except LedgerBroken as error:
        return Check(step="ledger", outcome="failed", why=str(error))
    wrong = _differences(certificate, entries, counting)
    return checked(
        "ledger",
        not wrong,
        f"the record of the images' owner agrees: its chain of {len(entries)} entries is whole, and holds every mechanism "
        "as it is stated, charged before the images were read",
        f"the certificate and the ledger differ: {'; '.join(wrong)}",
    )


def _check_absent(certificate: Certificate, ledgers: Store) -> Check:
    """A store that made the release must have its ledger; of one that did not, nothing is proven."""
    paid = set(certificate.artifacts.items())
    made = any((artifact.ref.stage, artifact.ref.digest) in paid for artifact in list_artifacts(ledgers))
    has = "made this release, but its ledger" if made else "did not make this release: a ledger"
    why = f"{ledgers.url} {has} {certificate.ledger.dataset} {'is gone' if made else 'is not there'}"
    return Check(step="ledger", outcome="failed", why=why)


def check_store(certificate: Certificate, digests: Mapping[str, str], store: Store | None) -> Check:
    """What the store published is what is shown, to the byte; and what was paid for says the same of its noise."""
    step = "store"
    if store is None:
        why = (
            "the store that made it is not at hand: who made up all files together, and their digests, is not found out"
        )
        return Check(step=step, outcome="skipped", why=why)
    artifacts = list_artifacts(store)
    published = [
        {name: entry.sha256 for name, entry in artifact.manifest.files.items()}
        for artifact in artifacts
        if artifact.ref.stage == "release"
    ]
    wrong = []
    if not any(
        digests.items() <= files.items() and (len(digests) == 1 or digests.keys() == files.keys())
        for files in published
    ):
        nearest = max(published, key=lambda files: len(digests.items() & files.items()), default={})
        other = sorted(name for name in digests if nearest.get(name) != digests[name])
        wrong.append(f"the store published no such release; what it published has another {', another '.join(other)}")
    by_digest = {(artifact.ref.stage, artifact.ref.digest): artifact for artifact in artifacts}
    for stage, digest in certificate.artifacts.items():
        artifact = by_digest.get((stage, digest))
        if artifact is None:
            wrong.append(f"the store has no {stage} of digest {digest[:16]}…")
        elif (found := guarantee_said(stage, artifact)) != GUARANTEE:
            wrong.append(f"the noise of its {stage} can be made again: it says guarantee {found!r}")
    return checked(
        step,
        not wrong,
        "the store published exactly this, to the byte, and what was paid for says that nobody can make its noise again",
        "; ".join(wrong),
    )


def knows(store: Store, certificate: bytes) -> bool:
    """Whether a store has the ledger that a certificate names."""
    try:
        return bool(store.list(f"ledger/{json.loads(certificate)['ledger']['dataset']}/entries"))
    except (KeyError, TypeError, ValueError):
        return True  # what cannot be read is said by the checks


def _differences(certificate: Certificate, entries: Sequence[Entry], counting: Mapping[str, Entry]) -> list[str]:
    """What the certificate says and the ledger does not, and what of its plan it does not say."""
    then = entries[: len(certificate.ledger.entries)]
    return [
        *_other_entries(certificate, then),
        *_other_mechanisms(certificate, entries, counting),
        *_left_out(certificate, entries, then, counting),
    ]


def _other_entries(certificate: Certificate, then: Sequence[Entry]) -> list[str]:
    """Where the ledger as it was differs from what is listed of it, or from the sums that are stated."""
    stated = certificate.ledger
    held = [listed_as(entry) for entry in then]
    wrong = [
        f"entry {item.sequence} ({item.id}) is unknown or was changed"
        for item, own in zip_longest(stated.entries, held)
        if item != own
    ]
    if not wrong:
        spent = spent_by(then)
        granted = granted_by(then) if then else None
        if granted != stated.granted_in_all:
            wrong.append(f"granted is {granted}, certified {stated.granted_in_all}")
        pairs = [(spent.epsilon, stated.spent_in_all.epsilon), (spent.delta, stated.spent_in_all.delta)]
        if any(not math.isclose(held, said, rel_tol=SAME_EPSILON) for held, said in pairs):
            wrong.append(
                f"spent in all is epsilon {spent.epsilon:g}, delta {spent.delta:g}, certified {stated.spent_in_all}"
            )
    return wrong


def _other_mechanisms(certificate: Certificate, entries: Sequence[Entry], counting: Mapping[str, Entry]) -> list[str]:
    """Where a mechanism is not what was reserved, or paid for something else."""
    settled = {entry.body["reservation"]: entry.body["artifact"] for entry in entries if entry.kind == "settle"}
    wrong = []
    for mechanism in certificate.mechanisms:
        stage, paid = mechanism.stage, mechanism.ledger_entry.id
        entry = counting.get(paid)
        if entry is None or entry.digest != mechanism.ledger_entry.sha256:
            wrong.append(f"{paid} is no reservation that counts")
            continue
        plan = entry.body["plan"]
        facts = {
            "stage": (entry.body["stage"], stage),
            "mechanism": (entry.event, mechanism.dp_event),
            "artifact": (settled.get(paid), certificate.artifacts[stage]),
            "number of images": (
                entry.body["num_images"],
                certificate.num_validation_images if stage == "validate" else certificate.num_training_images,
            ),
        }
        if paid not in certificate.plan.builds_on:
            facts["epsilon"] = (plan["epsilon"], certificate.epsilon)
            facts["delta"] = (plan["delta"], certificate.delta)
            facts["plan"] = (Plan(id=plan["id"], builds_on=tuple(plan["builds_on"])), certificate.plan)
        wrong += [
            f"{name} of {paid} is {held}, certified {said}" for name, (held, said) in facts.items() if held != said
        ]
    return wrong


def _left_out(
    certificate: Certificate, entries: Sequence[Entry], then: Sequence[Entry], counting: Mapping[str, Entry]
) -> list[str]:
    """What the ledger says of the certificate's mechanisms and plan, and the certificate does not."""
    told = {mechanism.stage for mechanism in certificate.mechanisms}
    own = {mechanism.ledger_entry.id for mechanism in certificate.mechanisms}
    left_out = [
        e.sequence for e in entries[len(then) :] if {e.id, e.body.get("reservation")} & own and e.kind != "close"
    ]
    wrong = [f"entry {number} is about its own mechanisms, and was left out" for number in left_out]
    wrong += [
        f"entry {entry.sequence} says that the noise of {entry.id} can be made again"
        for entry in without_guarantee(entries, own)
    ]
    wrong += [
        f"{entry.id} is a {entry.body['stage']} of the same plan, of which nothing is said"
        for entry in counting.values()
        if entry.body["plan"]["id"] == certificate.plan.id
        and entry.body["stage"] in (*BEFORE_FINETUNE, "finetune")
        and entry.body["stage"] not in told
    ]
    return wrong
