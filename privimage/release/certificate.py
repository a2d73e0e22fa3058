"""The privacy certificate of a release: what is promised, under which relation, and what it rests on. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dp_accounting as dpa

from privimage import __version__
from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts
from privimage.errors import PrivacyRefused, Uncharged
from privimage.payloads import GUARANTEE, guarantee_of
from privimage.privacy.accounting import delta_of_course, epsilon_of, epsilon_of_plan, lost_attempts
from privimage.privacy.budget import reservations_of, spent_by, without_guarantee
from privimage.privacy.entry import Entry
from privimage.privacy.events import event_from_json, event_in_words, event_to_json
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import RELATION, RELATION_IN_WORDS
from privimage.release.code import code_digest
from privimage.store.artifacts import Artifact, canonical_json

__all__ = [
    "BEFORE_FINETUNE",
    "SCHEMA",
    "UNIT",
    "CrossCheck",
    "Groups",
    "build_certificate",
    "certified_interval",
    "config_digest",
    "groups_of",
    "images_in_words",
    "in_words",
    "interval_in_words",
]

CrossCheck = Callable[[Sequence[dpa.DpEvent], float], tuple[float, float]]

SCHEMA = 1
# Stages that may be charged before fine-tuning: no certificate is silent about one.
BEFORE_FINETUNE = ("query", "class_means")
UNIT = "one image"
_ASSUMPTIONS = (
    "The number of training images is public.",
    "One image is the unit: several images of one person are protected as a group, with a larger epsilon.",
    "Settings were chosen without looking at these images, or what was looked at is charged in the ledger.",
    "Whoever reads the release does not also read the private side of the store or the memory of the computation.",
    "The noise and the choice of batches are secret: they came from the operating system's entropy, and nobody kept them.",
    "The public images are public, and none of the sensitive images is among them.",
)
_VALIDATED = (
    "Validation images are protected as training images are: each is one of the images that the guarantee is for. Their "
    "number is public."
)
_COVERED = "all Python files of the privimage package: their paths and bytes, in the order of the paths"


def build_certificate(
    config: RunConfig,
    facts: SensitiveFacts,
    ledger: Ledger,
    private_artifacts: Mapping[str, Artifact],
    guarantees: Sequence[str],
    files: Mapping[str, bytes],
    cross_check: CrossCheck,
) -> dict[str, Any]:
    """The certificate as JSON.

    Args:
        private_artifacts: the artifacts of the private stages, by stage; without a query only where none was made.
        guarantees: what each of them says of its own randomness.
        files: the other files of the release, by name.
        cross_check: a second accountant: certified lower and upper bound on epsilon of events at a delta, or
            PrivacyRefused where it can certify none.

    Raises:
        Uncharged: the ledger does not hold an entry that paid for one of the artifacts.
        PrivacyRefused: the configuration states another epsilon, delta or kind of generator than was charged, or hides a
            query or class mean images.
    """
    entries = ledger.entries()  # once, so that all that is said of the ledger is of one moment
    held = reservations_of(entries)
    paid = _paid(private_artifacts, held)
    tuned = private_artifacts["finetune"].manifest.reservations[-1]
    plan = held[tuned].body["plan"]
    events = {entry.id: entry.event for _, entry in paid}
    _check_whole(config, plan, held, events, tuned)
    mechanisms = [_mechanism(stage, entry, config.privacy.delta) for stage, entry in paid]
    groups = groups_of(mechanisms, plan["builds_on"])
    computed = _checked_epsilon(config, plan, groups)
    guaranteed = set(guarantees) == {GUARANTEE} and not without_guarantee(entries, events)
    return {
        "schema": SCHEMA,
        "name": config.name,
        "guarantee": guarantee_of(guaranteed),
        "epsilon": config.privacy.epsilon,
        "delta": config.privacy.delta,
        "epsilon_computed": computed,
        "epsilon_certified_interval": certified_interval(groups, config.privacy.delta, cross_check),
        "accountant": "dp_accounting PLD, pessimistic",
        "relation": RELATION.name,
        "relation_in_words": RELATION_IN_WORDS,
        "unit": UNIT,
        "num_training_images": facts.num_train,
        "selection": config.selection.strategy,
        "generator": config.generator.kind,
        **({"class_mean_images": True} if "class_means" in private_artifacts else {}),
        **({"num_validation_images": facts.num_validation} if "validate" in private_artifacts else {}),
        "mechanisms": mechanisms,
        "plan": {"id": plan["id"], "builds_on": list(plan["builds_on"])},
        "ledger": _ledger(ledger, entries),
        "assumptions": _assumptions(config, private_artifacts, list(events.values())),
        "code": _code(private_artifacts),
        "artifacts": {stage: artifact.ref.digest for stage, artifact in private_artifacts.items()},
        "config_sha256": config_digest(config),
        "packages": private_artifacts["finetune"].manifest.provenance["packages"],
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }


def _assumptions(config: RunConfig, artifacts: Mapping[str, Artifact], events: Sequence[dpa.DpEvent]) -> list[str]:
    validated = [_VALIDATED] if "validate" in artifacts else []
    return [*_ASSUMPTIONS, *validated, config.generator.sampling_in_words(events)]


def _paid(artifacts: Mapping[str, Artifact], held: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    """Every entry that paid for one of the artifacts, with its stage."""
    paid = []
    for stage, artifact in artifacts.items():
        for reservation in artifact.manifest.reservations:
            entry = held.get(reservation)
            if entry is None:
                raise Uncharged(f"The ledger does not hold {reservation}, which paid for stage {stage}.")
            paid.append((stage, entry))
    return paid


def _mechanism(stage: str, entry: Entry, delta: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "event": event_to_json(entry.event),
        "in_words": event_in_words(entry.event),
        "epsilon_alone": epsilon_of([entry.event], delta),
        "ledger_entry": {"sequence": entry.sequence, "id": entry.id, "sha256": entry.digest},
    }


def _check_whole(
    config: RunConfig,
    plan: Mapping[str, Any],
    held: Mapping[str, Entry],
    events: Mapping[str, dpa.DpEvent],
    tuned: str,
) -> None:
    """Raise PrivacyRefused if a charge would be left out, or fine-tuning's is none of the configured kind of generator."""
    if hidden := _hidden(plan, held, events):
        raise PrivacyRefused(
            f"Fine-tuning was charged after the {held[hidden].body['stage']} of entry {hidden}, which this run's configuration "
            f"does not have (selection.strategy {config.selection.strategy}, generator.kind {config.generator.kind}): no "
            "certificate leaves it out."
        )
    if not config.generator.is_charged_as(events[tuned]):
        raise PrivacyRefused(
            f"The configuration states generator.kind {config.generator.kind}, but fine-tuning was charged as "
            f"{event_in_words(events[tuned])}: no certificate tells of another kind."
        )


def _checked_epsilon(config: RunConfig, plan: Mapping[str, Any], groups: Groups) -> float:
    """Epsilon as computed; raises PrivacyRefused unless it is within what configuration and plan state."""
    stated = (config.privacy.epsilon, config.privacy.delta)
    computed = epsilon_of_plan(
        groups.own, groups.builds_on, config.privacy.delta, lost=groups.lost, lost_before=groups.lost_before
    )
    if (plan["epsilon"], plan["delta"]) != stated or computed > config.privacy.epsilon * (1 + 1e-9):
        raise PrivacyRefused(
            f"The configuration states epsilon {stated[0]:g}, delta {stated[1]:g}, but what was made was charged for "
            f"epsilon {plan['epsilon']:g}, delta {plan['delta']:g} and costs {computed:.6g}: no certificate."
        )
    return computed


def _ledger(ledger: Ledger, entries: Sequence[Entry]) -> dict[str, Any]:
    """The ledger as it is now: its entries, what is spent and what is granted."""
    spent = spent_by(entries)
    return {
        "dataset": ledger.dataset_id,
        "entries": [
            {"sequence": entry.sequence, "kind": entry.kind, "id": entry.id, "sha256": entry.digest}
            for entry in entries
        ],
        "spent_in_all": {"epsilon": spent.epsilon, "delta": spent.delta},
        "granted_in_all": {name: entries[0].body[name] for name in ("epsilon", "delta", "order")},
    }


def _hidden(plan: Mapping[str, Any], held: Mapping[str, Entry], listed: Mapping[str, dpa.DpEvent]) -> str | None:
    """A charge that fine-tuning's plan builds on, or a query or class mean images of that plan, none of which would be listed."""
    missing = [paid for paid in plan["builds_on"] if paid not in listed]
    for stage in BEFORE_FINETUNE:
        charged = [
            paid
            for paid, entry in held.items()
            if entry.body["plan"]["id"] == plan["id"] and entry.body["stage"] == stage
        ]
        if not any(paid in listed for paid in charged):
            missing += charged
    return missing[0] if missing else None


def config_digest(config: RunConfig) -> str:
    """SHA-256 of a configuration without `performance`, which changes no result."""
    return hashlib.sha256(canonical_json(config.model_dump(mode="json", exclude={"performance"}))).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The events of a certificate's plan, those that it builds on, and how many attempts in each were lost."""

    own: list[dpa.DpEvent]
    builds_on: list[dpa.DpEvent]
    lost: int
    lost_before: int


def groups_of(mechanisms: Sequence[Mapping[str, Any]], builds_on: Sequence[str]) -> Groups:
    """From the mechanisms as a certificate lists them, and the entries that its plan builds on."""
    listed = {mechanism["ledger_entry"]["id"]: mechanism for mechanism in mechanisms}
    before = [listed[paid] for paid in builds_on]
    own = [mechanism for paid, mechanism in listed.items() if paid not in builds_on]
    return Groups(
        own=[event_from_json(mechanism["event"]) for mechanism in own],
        builds_on=[event_from_json(mechanism["event"]) for mechanism in before],
        lost=lost_attempts([mechanism["stage"] for mechanism in own]),
        lost_before=lost_attempts([mechanism["stage"] for mechanism in before]),
    )


def certified_interval(groups: Groups, delta: float, cross_check: CrossCheck) -> dict[str, Any]:
    """What the second accountant certifies of a plan's epsilon; both bounds None, and why, where it can certify none.

    Groups are added at half of delta each, as in `accounting.epsilon_of_plan`.
    """
    share = delta / 2 if groups.builds_on else delta
    pairs = [(groups.own, delta_of_course(share, groups.lost))]
    if groups.builds_on:
        pairs.append((groups.builds_on, delta_of_course(share, groups.lost_before)))
    try:
        bounds = [cross_check(events, part) for events, part in pairs]
    except PrivacyRefused as error:
        return {"lower": None, "upper": None, "accountant": "Opacus PRV", "absent_because": str(error)}
    lower, upper = (sum(bound[side] for bound in bounds) for side in (0, 1))
    return {"lower": lower, "upper": upper, "accountant": "Opacus PRV", "absent_because": None}


def interval_in_words(interval: Mapping[str, Any]) -> str:
    """The second accountant's statement for people."""
    if interval["lower"] is None or interval["upper"] is None:
        return f"none by {interval['accountant']}: {interval['absent_because']}"
    return f"{interval['lower']:.6g} to {interval['upper']:.6g} ({interval['accountant']})"


def _code(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What wrote the certificate, and what made the artifacts, where their manifests say so."""
    made_by = {stage: artifact.manifest.provenance.get("code") for stage, artifact in artifacts.items()}
    return {
        "privimage": __version__,
        "sha256": code_digest(),
        "covers": _COVERED,
        "stages": {stage: digest for stage, digest in made_by.items() if digest is not None},
    }


def in_words(certificate: Mapping[str, Any]) -> str:
    """The promise in one sentence."""
    if certificate["guarantee"] != "differential privacy":
        return "This release carries NO privacy guarantee: it was made with reproducible noise, for a test."
    return (
        f"({certificate['epsilon']:g}, {certificate['delta']:g})-differential privacy for "
        f"{certificate['unit']} of {images_in_words(certificate)}, {certificate['relation_in_words']}"
    )


def images_in_words(certificate: Mapping[str, Any]) -> str:
    """How many images are protected; validation images only where some were looked at."""
    validated = certificate.get("num_validation_images")
    return f"{certificate['num_training_images']}" + (
        f" training and {validated} validation images" if validated else ""
    )
