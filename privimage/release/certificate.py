"""The privacy certificate of a release: what it says, in its fields and in words. No torch.

`certify` makes it, `verify` and `store_checks` look whether it is true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import dp_accounting as dpa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privimage.errors import DataError, PrivacyRefused
from privimage.payloads import GUARANTEE, Guarantee
from privimage.privacy.accounting import delta_of_course, lost_attempts
from privimage.privacy.entry import Entry
from privimage.privacy.events import event_from_json
from privimage.store.artifacts import Artifact

__all__ = [
    "BEFORE_FINETUNE",
    "SCHEMA",
    "UNIT",
    "Certificate",
    "Code",
    "CrossCheck",
    "Granted",
    "Groups",
    "Interval",
    "Ledgers",
    "Listed",
    "Mechanism",
    "Paid",
    "Plan",
    "Spent",
    "certified_interval",
    "granted_by",
    "groups_of",
    "images_in_words",
    "in_words",
    "interval_in_words",
    "listed_as",
]

CrossCheck = Callable[[Sequence[dpa.DpEvent], float], tuple[float, float]]

SCHEMA = 1
# Stages that may be charged before fine-tuning: no certificate is silent about one.
BEFORE_FINETUNE = ("query", "feature_means", "class_means")
UNIT = "one image"


class _Part(BaseModel):
    """A part of the certificate: as it is stated, nothing more and nothing less."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Paid(_Part):
    """The ledger entry that paid for a mechanism."""

    sequence: int
    id: str
    sha256: str


class Listed(Paid):
    """An entry of the ledger, of whatever kind."""

    kind: str


def listed_as(entry: Entry) -> Listed:
    """An entry as a certificate names it."""
    return Listed(sequence=entry.sequence, kind=entry.kind, id=entry.id, sha256=entry.digest)


class Mechanism(_Part):
    """What touched the sensitive images once, as data and in words, and what it would cost alone.

    Attributes:
        event: dp_accounting's event, as `privacy.events` writes it.
    """

    stage: str
    event: dict[str, Any]
    in_words: str
    epsilon_alone: float
    ledger_entry: Paid

    @property
    def dp_event(self) -> dpa.DpEvent:
        """The event for an accountant; LedgerBroken if it is none."""
        return event_from_json(self.event)


class Interval(_Part):
    """Certified bounds on epsilon by a second accountant; both None, and why, where it can certify none."""

    lower: float | None
    upper: float | None
    accountant: str
    absent_because: str | None

    def holds(self, epsilon: float, rounding: float) -> bool:
        """Whether an epsilon lies within the bounds, the upper one widened by a relative `rounding`; never without bounds."""
        if self.lower is None or self.upper is None:
            return False
        return self.lower <= epsilon <= self.upper * (1 + rounding)


class Plan(_Part):
    """The plan that paid for all of it, and the entries of earlier plans that it builds on."""

    id: str
    builds_on: tuple[str, ...]


class Spent(_Part):
    """What a data set's plans cost together, added up."""

    epsilon: float
    delta: float


class Granted(Spent):
    """What the owner of the images grants; `order` is the Rényi filter's."""

    order: float


def granted_by(entries: Sequence[Entry]) -> Granted:
    """What a ledger's first entry grants."""
    return Granted(**{name: entries[0].body[name] for name in Granted.model_fields})


class Ledgers(_Part):
    """The ledger of the images as it was then."""

    dataset: str
    entries: tuple[Listed, ...]
    spent_in_all: Spent
    granted_in_all: Granted


class Code(_Part):
    """What wrote the certificate, and what made each stage's artifact, as digests of the package."""

    privimage: str
    sha256: str
    covers: str
    stages: dict[str, str]


class Certificate(_Part):
    """What is promised of a release, under which relation, and what it rests on.

    Attributes:
        num_validation_images: None where none were looked at.
        class_mean_images: whether noisy mean images of the classes were paid for.
        fine_tuned: whether the generator was trained on the sensitive images; if not, it learned by what was released before.
        files: SHA-256 of the release's other files.
    """

    format: int = Field(alias="schema")  # `schema` is a name of pydantic's own
    name: str
    guarantee: Guarantee
    epsilon: float
    delta: float
    epsilon_computed: float
    epsilon_certified_interval: Interval
    accountant: str
    relation: str
    relation_in_words: str
    unit: str
    num_training_images: int
    num_validation_images: int | None = None
    selection: str
    generator: str
    class_mean_images: bool = False
    fine_tuned: bool = True
    mechanisms: tuple[Mechanism, ...]
    plan: Plan
    ledger: Ledgers
    assumptions: tuple[str, ...]
    code: Code
    artifacts: dict[str, str]
    config_sha256: str
    packages: dict[str, str]
    files: dict[str, str]

    def to_bytes(self) -> bytes:
        """As it is written; what is not the case (a validation, class mean images) is left out."""
        return json.dumps(self.model_dump(by_alias=True, exclude_defaults=True), indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """What was written.

        Raises:
            DataError: it is no certificate of this version.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"certificate.json cannot be used ({place}: {first['msg']}).") from None

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """That of a release in the store; raises as `parse`."""
        return cls.parse(artifact.read_bytes("certificate.json"))

    @property
    def is_private(self) -> bool:
        """Whether it promises anything."""
        return self.guarantee == GUARANTEE

    @property
    def num_protected(self) -> int:
        """Training and validation images together."""
        return self.num_training_images + (self.num_validation_images or 0)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The events of a certificate's plan, those that it builds on, and how many attempts in each were lost."""

    own: list[dpa.DpEvent]
    builds_on: list[dpa.DpEvent]
    lost: int
    lost_before: int


def groups_of(mechanisms: Sequence[Mechanism], builds_on: Sequence[str]) -> Groups:
    """From the mechanisms as a certificate lists them, and the entries that its plan builds on."""
    listed = {mechanism.ledger_entry.id: mechanism for mechanism in mechanisms}
    before = [listed[paid] for paid in builds_on]
    own = [mechanism for paid, mechanism in listed.items() if paid not in builds_on]
    return Groups(
        own=[mechanism.dp_event for mechanism in own],
        builds_on=[mechanism.dp_event for mechanism in before],
        lost=lost_attempts([mechanism.stage for mechanism in own]),
        lost_before=lost_attempts([mechanism.stage for mechanism in before]),
    )


def certified_interval(groups: Groups, delta: float, cross_check: CrossCheck) -> Interval:
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
        return Interval(lower=None, upper=None, accountant="Opacus PRV", absent_because=str(error))
    lower, upper = (sum(bound[side] for bound in bounds) for side in (0, 1))
    return Interval(lower=lower, upper=upper, accountant="Opacus PRV", absent_because=None)


def interval_in_words(interval: Interval) -> str:
    """The second accountant's statement for people."""
    if interval.lower is None or interval.upper is None:
        return f"none by {interval.accountant}: {interval.absent_because}"
    return f"{interval.lower:.6g} to {interval.upper:.6g} ({interval.accountant})"


def in_words(certificate: Certificate) -> str:
    """The promise in one sentence."""
    if not certificate.is_private:
        return "This release carries NO privacy guarantee: it was made with reproducible noise, for a test."
    return (
        f"({certificate.epsilon:g}, {certificate.delta:g})-differential privacy for "
        f"{certificate.unit} of {images_in_words(certificate)}, {certificate.relation_in_words}"
    )


def images_in_words(certificate: Certificate) -> str:
    """How many images are protected; validation images only where some were looked at."""
    validated = certificate.num_validation_images
    return f"{certificate.num_training_images}" + (f" training and {validated} validation images" if validated else "")
