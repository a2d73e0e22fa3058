"""A kind of generator: for each class one Gaussian, around the noisy mean of its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import dp_accounting as dpa
from pydantic import Field

from privimage.data.facts import SensitiveFacts
from privimage.methods.generator import GeneratorKind
from privimage.methods.selection import SelectionStrategy
from privimage.privacy.events import times
from privimage.privacy.mechanisms import ClassSumRounds

__all__ = ["Gaussian"]


class Gaussian(GeneratorKind):
    """A Gaussian per class: its mean is released with noise, its width is given."""

    code: ClassVar[str] = "tests.plugins.gaussian.code"

    kind: Literal["gaussian"] = Field(default="gaussian", description="A Gaussian per class.")
    width: float = Field(default=0.3, gt=0, description="Standard deviation of a pixel in [-1, 1].")

    def mechanism(
        self, facts: SensitiveFacts, selection: SelectionStrategy, *, noise_multiplier: float
    ) -> ClassSumRounds:
        """One sum of all images of each class, and of a number that counts them."""
        return ClassSumRounds(
            num_images=facts.num_train,
            num_classes=len(facts.class_names),
            dimensions=(math.prod((facts.channels, facts.resolution, facts.resolution)) + 1,),
            noise_multiplier=noise_multiplier,
        )

    @classmethod
    def is_charged_as(cls, event: dpa.DpEvent) -> bool:
        return isinstance(times(event)[0], dpa.GaussianDpEvent)

    @classmethod
    def sampling_in_words(cls, events: Sequence[dpa.DpEvent]) -> str:
        return "Fine-tuning read all training images once; nothing was sampled."

    @classmethod
    def in_words(cls, *, selects: bool, finetunes: bool) -> str:
        return "A Gaussian is drawn around the noisy mean image of each class."
