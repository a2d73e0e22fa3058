"""A certificate is made from the ledger and from what the stages say, or refused. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import dp_accounting as dpa

from privimage import __version__
from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts
from privimage.errors import ArtifactDamaged, PrivacyRefused, Uncharged
from privimage.payloads import GUARANTEE, guarantee_of
from privimage.privacy.accounting import epsilon_of, epsilon_of_plan
from privimage.privacy.budget import reservations_of, spent_by, without_guarantee
from privimage.privacy.entry import Entry
from privimage.privacy.events import event_in_words, event_to_json
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import RELATION, RELATION_IN_WORDS
from privimage.release.certificate import (
    BEFORE_FINETUNE,
    SCHEMA,
    UNIT,
    Certificate,
    Code,
    CrossCheck,
    Groups,
    Ledgers,
    Mechanism,
    Paid,
    Plan,
    Spent,
    certified_interval,
    granted_by,
    groups_of,
    listed_as,
)
from privimage.release.code import code_digest
from privimage.store.artifacts import Artifact, canonical_json

__all__ = ["build_certificate", "config_digest"]

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
_NOT_SAMPLED = (
    "The sums over classes read all training images, once; nothing was sampled, and nothing gained by sampling."
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
) -> Certificate:
    """The certificate of a release.

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
    paid = _paid(private_artifacts, held := reservations_of(entries))
    last = private_artifacts["finetune" if config.generator.finetunes else "feature_means"]
    tuned = last.manifest.reservations[-1]
    plan = held[tuned].body["plan"]
    events = {entry.id: entry.event for _, entry in paid}
    _check_whole(config, plan, held, events, tuned)
    mechanisms = [_mechanism(stage, entry, config.privacy.delta) for stage, entry in paid]
    groups = groups_of(mechanisms, plan["builds_on"])
    return Certificate(
        schema=SCHEMA,
        name=config.name,
        guarantee=guarantee_of(set(guarantees) == {GUARANTEE} and not without_guarantee(entries, events)),
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        epsilon_computed=_checked_epsilon(config, plan, groups),
        epsilon_certified_interval=certified_interval(groups, config.privacy.delta, cross_check),
        accountant="dp_accounting PLD, pessimistic",
        relation=RELATION.name,
        relation_in_words=RELATION_IN_WORDS,
        unit=UNIT,
        num_training_images=facts.num_train,
        num_validation_images=facts.num_validation if "validate" in private_artifacts else None,
        selection=config.selection.strategy,
        generator=config.generator.kind,
        class_mean_images="class_means" in private_artifacts,
        fine_tuned="finetune" in private_artifacts,
        mechanisms=tuple(mechanisms),
        plan=Plan(id=plan["id"], builds_on=tuple(plan["builds_on"])),
        ledger=_ledger(ledger, entries),
        assumptions=_assumptions(config, private_artifacts, list(events.values())),
        code=_code(private_artifacts),
        artifacts={stage: artifact.ref.digest for stage, artifact in private_artifacts.items()},
        config_sha256=config_digest(config),
        packages=_packages(last),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )


def _assumptions(
    config: RunConfig, artifacts: Mapping[str, Artifact], events: Sequence[dpa.DpEvent]
) -> tuple[str, ...]:
    validated = [_VALIDATED] if "validate" in artifacts else []
    sampled = config.generator.sampling_in_words(events) if config.generator.finetunes else _NOT_SAMPLED
    return (*_ASSUMPTIONS, *validated, sampled)


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


def _mechanism(stage: str, entry: Entry, delta: float) -> Mechanism:
    return Mechanism(
        stage=stage,
        event=event_to_json(entry.event),
        in_words=event_in_words(entry.event),
        epsilon_alone=epsilon_of([entry.event], delta),
        ledger_entry=Paid(sequence=entry.sequence, id=entry.id, sha256=entry.digest),
    )


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
            f"What was paid for last was charged after the {held[hidden].body['stage']} of entry {hidden}, which this run's configuration "
            f"does not have (selection.strategy {config.selection.strategy}, generator.kind {config.generator.kind}): no "
            "certificate leaves it out."
        )
    if config.generator.finetunes and not config.generator.is_charged_as(events[tuned]):
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


def _ledger(ledger: Ledger, entries: Sequence[Entry]) -> Ledgers:
    """The ledger as it is now: its entries, what is spent and what is granted."""
    spent = spent_by(entries)
    return Ledgers(
        dataset=ledger.dataset_id,
        entries=tuple(listed_as(entry) for entry in entries),
        spent_in_all=Spent(epsilon=spent.epsilon, delta=spent.delta),
        granted_in_all=granted_by(entries),
    )


def _hidden(plan: Mapping[str, Any], held: Mapping[str, Entry], listed: Mapping[str, dpa.DpEvent]) -> str | None:
    """A charge that the plan builds on, or one of that plan before fine-tuning, none of which would be listed."""
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


def _code(artifacts: Mapping[str, Artifact]) -> Code:
    """What wrote the certificate, and what made the artifacts, where their manifests say so."""
    made_by = {stage: artifact.manifest.provenance.get("code") for stage, artifact in artifacts.items()}
    return Code(
        privimage=__version__,
        sha256=code_digest(),
        covers=_COVERED,
        stages={stage: str(digest) for stage, digest in made_by.items() if digest is not None},
    )


def _packages(artifact: Artifact) -> dict[str, str]:
    """The packages that made an artifact, and their versions."""
    packages = artifact.manifest.provenance["packages"]
    if not isinstance(packages, Mapping):
        raise ArtifactDamaged(f"The manifest of {artifact.ref.stage} {artifact.ref.key[:12]} names no packages.")
    return {name: str(version) for name, version in packages.items()}
