"""What a kind of generator declares: its settings, its mechanism, what it supports, and where its code is.

Stages, keys, plan, preflight, certificate, forms and audit ask the declaration, and never which kind it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import dp_accounting as dpa
from pydantic import Field

from privimage.config.classifier import ClassifierConfig
from privimage.config.form import Section
from privimage.config.images import ImageConfig
from privimage.data.facts import SensitiveFacts
from privimage.methods.selection import SelectionStrategy
from privimage.privacy.mechanisms import ClassSumRounds, ClassSums, DPSGDMechanism

__all__ = ["FinetuneMechanism", "FromPublic", "GeneratorKind", "check_levels"]

FinetuneMechanism = DPSGDMechanism | ClassSumRounds
FromPublic = Literal["none", "mixed", "unchanged"]
"""What comes of public images among the synthetic ones: nothing, mixtures of two each, or these images themselves."""


class GeneratorKind(Section):
    """The settings of a generator, which are also the declaration of its kind.

    Attributes:
        code: the module with its code (`generators.interface.GeneratorCode`), imported when it runs.
        can_be_audited: whether stage `audit` can run canaries through its fine-tuning.
    """

    code: ClassVar[str]
    can_be_audited: ClassVar[bool] = False

    kind: str = Field(description="Name of the kind.")

    @abstractmethod
    def mechanism(
        self, facts: SensitiveFacts, selection: SelectionStrategy, *, noise_multiplier: float
    ) -> FinetuneMechanism:
        """What fine-tuning is charged as, from settings and public facts: the very object that will add the noise."""

    @classmethod
    @abstractmethod
    def is_charged_as(cls, event: dpa.DpEvent) -> bool:
        """Whether a generator of this kind is fine-tuned by a mechanism of such an event."""

    @classmethod
    @abstractmethod
    def sampling_in_words(cls, events: Sequence[dpa.DpEvent]) -> str:
        """What the accounting of these events assumes of the images that fine-tuning sees, for the certificate."""

    @classmethod
    @abstractmethod
    def in_words(cls, *, selects: bool, finetunes: bool) -> str:
        """How such a generator is trained, with a selection and fine-tuning or without, in sentences for the datasheet of a release."""

    @property
    def restart_allowance(self) -> int:
        """Steps accounted for beside those that are run, to resume after crashes."""
        return 0

    @property
    def checkpoint_steps(self) -> int:
        """Steps of the mechanism between two saved checkpoints; an attempt runs no further than that past one.

        By default one: an attempt that did not save a release may have made it, and there is no other.
        """
        return 1

    @property
    def finetunes(self) -> bool:
        """Whether it is trained on the sensitive images; if not, it learns of them by what was released for the selection."""
        return True

    @property
    def further_stages(self) -> tuple[str, ...]:
        """Stages of the pipeline that only such a generator has: class_means, warmup."""
        return ()

    def class_mean_sums(self, facts: SensitiveFacts, *, noise_multiplier: float) -> ClassSums | None:
        """The mechanism of stage class_means, from settings and public facts; None where the run has no such stage."""
        return None

    def public_images(self, selection: SelectionStrategy) -> FromPublic:
        """What comes of public images among the synthetic ones. Unless none, these are chosen together, and need `pretrain`."""
        return "none"

    def check(self, image: ImageConfig, selection: SelectionStrategy) -> None:
        """Raise ValueError, which names settings and cure, if these settings contradict those of images and selection."""

    def for_a_look(self) -> Self:
        """The same generator, drawing as fast as a few images for the eye allow."""
        return self

    def fields_of(self, stage: str, selection: SelectionStrategy, classifier: ClassifierConfig) -> dict[str, Any]:
        """The settings that can change what a stage makes: they go into its key, and another key of a charged stage is charged.

        All of them, unless a kind knows better.
        """
        return self.model_dump(mode="json")

    def fields(self, *names: str, without: Sequence[str] = ()) -> dict[str, Any]:
        """The kind, and these of its settings, as JSON."""
        return self.model_dump(mode="json", include={"kind", *names}, exclude=set(without))


def check_levels(section: str, channel_multipliers: Sequence[int], resolution: int) -> None:
    """Raise ValueError unless images can be halved as often as the network has levels below its finest."""
    levels = len(channel_multipliers)
    if resolution % 2 ** (levels - 1) or resolution // 2 ** (levels - 1) < 2:
        raise ValueError(
            f"{section}.channel_multipliers has {levels} levels, but {resolution} pixels cannot be halved "
            f"{levels - 1} times down to at least 2: use fewer levels or another resolution"
        )
