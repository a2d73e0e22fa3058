"""The mechanisms of a run, as data. The object that is accounted is the object that adds the noise.

Relation: zero-out (dp_accounting's REPLACE_SPECIAL). Two training tables are neighbours if one is the other with one
image replaced by "no image": it votes for nothing and has a zero gradient. The number of images is public, and the
numbers are those of add-or-remove-one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import dp_accounting as dpa

from privimage.errors import ConfigError

__all__ = [
    "RELATION",
    "RELATION_IN_WORDS",
    "ClassSumRounds",
    "ClassSums",
    "DPSGDMechanism",
    "GaussianCounts",
    "HistogramQuery",
    "ValidationCount",
    "query_mechanism",
]

RELATION = dpa.NeighboringRelation.REPLACE_SPECIAL
RELATION_IN_WORDS = (
    "zero-out: one training image more or less, at its place and under a public number of images "
    "(dp_accounting REPLACE_SPECIAL; the numbers of add-or-remove-one)"
)


class GaussianCounts(Protocol):
    """A mechanism that adds Gaussian noise of `noise_multiplier` times its L2 sensitivity to counts or sums, once an attempt."""

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def sensitivity(self) -> float: ...

    @property
    def noise_stddev(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class HistogramQuery:
    """Noisy histogram of votes: each image votes for `num_votes` distinct categories in the row of its class.

    Guarantee: one image touches `num_votes` cells of one row by 1 each, so the L2 sensitivity of the histogram is
    sqrt(num_votes); Gaussian noise of `noise_stddev` per cell makes the release a Gaussian mechanism with
    `noise_multiplier`. Source: PRIVIMAGE (arXiv 2311.12850), Section 4.2.
    """

    num_votes: int
    num_classes: int
    num_categories: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(
                f"The query's noise_multiplier must be positive and finite, found {self.noise_multiplier}."
            )
        if not 1 <= self.num_votes <= self.num_categories:
            raise ConfigError(
                f"selection.num_votes is {self.num_votes}, but the public set has {self.num_categories} categories: "
                "each image votes for between 1 and all of them."
            )

    @property
    def sensitivity(self) -> float:
        """L2 change of the histogram when one image is zeroed out."""
        return math.sqrt(self.num_votes)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise in each cell, in votes."""
        return self.noise_multiplier * self.sensitivity

    @property
    def event(self) -> dpa.DpEvent:
        """What is accounted when the query runs once."""
        return dpa.GaussianDpEvent(self.noise_multiplier)


def query_mechanism(
    *,
    num_votes: int,
    num_classes: int,
    num_categories: int,
    num_images: int,
    query_error: float | None,
    query_noise_multiplier: float | None,
) -> HistogramQuery:
    """The query whose noise was given by hand, or follows from the wanted accuracy of the histogram.

    With `query_error`, the noise per cell is `query_error` times the mean class size num_images / num_classes: the
    most noise, hence the least cost, that reaches this accuracy. Only public numbers enter.
    """
    if query_noise_multiplier is None:
        if query_error is None:
            raise ConfigError("The query's noise is not stated: give privacy.query_error or query_noise_multiplier.")
        query_noise_multiplier = query_error * num_images / num_classes / math.sqrt(num_votes)
    return HistogramQuery(
        num_votes=num_votes,
        num_classes=num_classes,
        num_categories=num_categories,
        noise_multiplier=query_noise_multiplier,
    )


@dataclass(frozen=True, kw_only=True)
class ClassSums:
    """Noisy sums, one for each class: each image adds a vector of `dimension` numbers and norm at most 1 to its class's.

    Guarantee: zeroing out one image changes one sum by a vector of norm at most 1, so the L2 sensitivity of all of them
    together is 1; Gaussian noise of `noise_stddev` on each coordinate makes the release a Gaussian mechanism with
    `noise_multiplier`. `privimage.privacy.class_sums` sees to the norm.
    """

    num_images: int
    num_classes: int
    dimension: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(
                f"The class sums' noise_multiplier must be positive and finite, found {self.noise_multiplier}."
            )
        if min(self.num_images, self.num_classes, self.dimension) < 1:
            raise ConfigError(
                f"Class sums need images, classes and numbers to sum, found {self.num_images} images, {self.num_classes} "
                f"classes and vectors of {self.dimension} numbers."
            )

    @property
    def sensitivity(self) -> float:
        """L2 change of all sums when one image is zeroed out."""
        return 1.0

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on each coordinate of each sum."""
        return self.noise_multiplier * self.sensitivity

    @property
    def event(self) -> dpa.DpEvent:
        """What is accounted when the sums are released once."""
        return dpa.GaussianDpEvent(self.noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class ClassSumRounds:
    """`ClassSums`, one release after the other with the same noise; what is summed later may depend on what was released before.

    Guarantee: each release is a Gaussian mechanism with `noise_multiplier`, whatever the ones before it showed: their vectors have
    norm at most 1 by construction. So all of them together are as many Gaussian mechanisms, composed.
    """

    num_images: int
    num_classes: int
    dimensions: tuple[int, ...]
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ConfigError("Rounds of class sums need at least one kind of vector, found none.")
        for number in range(len(self.dimensions)):
            self.round(number)

    def round(self, number: int) -> ClassSums:
        """The mechanism of release `number`, from 0."""
        return ClassSums(
            num_images=self.num_images,
            num_classes=self.num_classes,
            dimension=self.dimensions[number],
            noise_multiplier=self.noise_multiplier,
        )

    @property
    def event(self) -> dpa.DpEvent:
        """What is accounted when each is released once."""
        single = dpa.GaussianDpEvent(self.noise_multiplier)
        return single if len(self.dimensions) == 1 else dpa.SelfComposedDpEvent(single, len(self.dimensions))


@dataclass(frozen=True, kw_only=True)
class DPSGDMechanism:
    """`num_steps` noisy clipped gradient sums over Poisson batches, plus an allowance for steps lost in crashes.

    Guarantee: each step includes each image independently with `sample_rate`, an included image adds a vector of
    norm at most `max_grad_norm` to the sum, and N(0, noise_stddev^2) is added to each coordinate of the sum.
    Everything computed from the noisy sums is post-processing. Source: Abadi et al. (2016), Algorithm 1.

    With `largest_batch_size`, a batch of more images is cut to a uniformly random subset of that many. That an image
    displaces another one is part of what is accounted (arXiv 2508.15089, as in dp_accounting).
    """

    num_images: int
    expected_batch_size: int
    num_steps: int
    restart_allowance: int
    max_grad_norm: float
    noise_multiplier: float
    largest_batch_size: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(f"DP-SGD's noise_multiplier must be positive and finite, found {self.noise_multiplier}.")
        if not 1 <= self.expected_batch_size <= self.num_images:
            raise ConfigError(
                f"generator.finetune.expected_batch_size is {self.expected_batch_size}, but there are {self.num_images} training "
                "images: choose at most that many."
            )
        cap = self.largest_batch_size
        if cap is not None and not self.expected_batch_size <= cap <= self.num_images:
            raise ConfigError(
                f"generator.finetune.largest_batch_size is {cap}, but must lie between expected_batch_size = "
                f"{self.expected_batch_size} and the {self.num_images} training images: choose a number between them, or "
                "none for no cap."
            )

    @property
    def sample_rate(self) -> float:
        """Probability with which each image enters a step; exact, never rounded to a loader's length."""
        return self.expected_batch_size / self.num_images

    @property
    def sensitivity(self) -> float:
        """L2 change of a step's sum when one of its images is zeroed out."""
        return self.max_grad_norm

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum."""
        return self.noise_multiplier * self.sensitivity

    @property
    def event(self) -> dpa.DpEvent:
        """What is accounted: all steps that may ever run, lost ones included."""
        return dpa.SelfComposedDpEvent(self._step, self.num_steps + self.restart_allowance)

    @property
    def _step(self) -> dpa.DpEvent:
        if self.largest_batch_size is None:
            return dpa.PoissonSampledDpEvent(self.sample_rate, dpa.GaussianDpEvent(self.noise_multiplier))
        return dpa.TruncatedSubsampledGaussianDpEvent(
            dataset_size=self.num_images,
            sampling_probability=self.sample_rate,
            truncated_batch_size=self.largest_batch_size,
            noise_multiplier=self.noise_multiplier,
        )


@dataclass(frozen=True, kw_only=True)
class ValidationCount:
    """Noisy counts, one for each of several classifiers, of the validation images that it recognises.

    A classifier is trained `votes_each` times, from different seeds, and counts the images of all of these models.

    Guarantee: one image adds at most `votes_each` to each of `num_candidates` counts, so the L2 sensitivity of their
    vector is votes_each * sqrt(num_candidates); Gaussian noise of `noise_stddev` on each makes an attempt a Gaussian
    mechanism with `noise_multiplier`, whatever the classifiers are. `restart_allowance` more attempts are accounted for
    from the start: the result of one that was interrupted is lost, and counted as if somebody had seen it.
    """

    num_images: int
    num_candidates: int
    votes_each: int
    noise_multiplier: float
    restart_allowance: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(
                f"The validation's noise_multiplier must be positive and finite, found {self.noise_multiplier}."
            )
        if min(self.num_images, self.num_candidates, self.votes_each) < 1:
            raise ConfigError(
                f"Validation needs images and classifiers, found {self.num_images} images, {self.num_candidates} classifiers "
                f"of {self.votes_each} trainings each: give a sensitive.validation_fraction above 0."
            )

    @property
    def sensitivity(self) -> float:
        """L2 change of the counts when one image is zeroed out."""
        return self.votes_each * math.sqrt(self.num_candidates)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on each count, in images times trainings."""
        return self.noise_multiplier * self.sensitivity

    @property
    def event(self) -> dpa.DpEvent:
        """What is accounted: all attempts that may ever run."""
        return dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(self.noise_multiplier), 1 + self.restart_allowance)
