"""Poisson sampling: each documented property is accepted of the real sampler and rejected of a plausible wrong one.

Limits are set so that the chance of a false alarm is below 1e-6 for each test, counting all its comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from privimage.privacy.entropy import SecretRandom
from privimage.privacy.poisson import poisson_batch

IMAGES, RATE, STEPS = 200, 0.1, 20_000
Inclusions = NDArray[np.float64]


def table(batches: Iterator[NDArray[np.int64]]) -> Inclusions:
    """(steps, images): 1 where the image was in the batch."""
    included = np.zeros((STEPS, IMAGES))
    for row, batch in zip(included, batches, strict=True):
        row[batch] = 1
    return included


@pytest.fixture(scope="module")
def poisson() -> Inclusions:
    random = SecretRandom()
    return table(poisson_batch(IMAGES, RATE, random) for _ in range(STEPS))


def marginal_rate(included: Inclusions) -> bool:
    """200 z-scores below 6.5: two-sided normal tail 8e-11 each."""
    scores = (included.sum(0) - STEPS * RATE) / (STEPS * RATE * (1 - RATE)) ** 0.5
    return bool((np.abs(scores) < 6.5).all())


def pairwise_independence(included: Inclusions) -> bool:
    """19,900 correlations below 7.5 of their standard deviations: 6e-14 each, times 33 for the skew of products."""
    centred = (included - RATE) / (RATE * (1 - RATE)) ** 0.5
    scores = (centred.T @ centred) / STEPS**0.5
    return bool((np.abs(scores[np.triu_indices(IMAGES, 1)]) < 7.5).all())


def independence_across_steps(included: Inclusions) -> bool:
    """Per image, correlation with itself 1, 2 and 10 steps later: 600 scores below 7.5."""
    centred = (included - RATE) / (RATE * (1 - RATE)) ** 0.5
    scores = [(centred[:-lag] * centred[lag:]).sum(0) / (STEPS - lag) ** 0.5 for lag in (1, 2, 10)]
    return bool((np.abs(scores) < 7.5).all())


def binomial_size(included: Inclusions) -> bool:
    """Mean to 7 standard errors, variance to 7 % (its relative standard error is 1 %)."""
    sizes = included.sum(1)
    variance = IMAGES * RATE * (1 - RATE)
    mean = abs(sizes.mean() - IMAGES * RATE) < 7 * (variance / STEPS) ** 0.5
    return bool(mean and abs(sizes.var() / variance - 1) < 0.07)


def fixed_size() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        yield generator.choice(IMAGES, int(IMAGES * RATE), replace=False)


def shuffled_epochs() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(int(STEPS * RATE)):
        yield from generator.permutation(IMAGES).reshape(int(1 / RATE), -1)


def one_coin_for_two_images() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        pairs = np.flatnonzero(generator.random(IMAGES // 2) < RATE)
        yield np.concatenate([2 * pairs, 2 * pairs + 1])


def each_batch_twice() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    for _ in range(STEPS // 2):
        batch = np.flatnonzero(generator.random(IMAGES) < RATE)
        yield from (batch, batch)


def first_image_more_often() -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    rates = np.full(IMAGES, RATE)
    rates[0] = 1.2 * RATE
    for _ in range(STEPS):
        yield np.flatnonzero(generator.random(IMAGES) < rates)


@pytest.mark.parametrize(
    ("has_property", "wrong_sampler"),
    [
        (marginal_rate, first_image_more_often),
        (pairwise_independence, one_coin_for_two_images),
        (independence_across_steps, shuffled_epochs),
        (independence_across_steps, each_batch_twice),
        (binomial_size, fixed_size),
        (binomial_size, one_coin_for_two_images),
    ],
)
def test_the_sampler_has_the_property_and_a_wrong_sampler_has_not(
    has_property: Callable[[Inclusions], bool],
    wrong_sampler: Callable[[], Iterator[NDArray[np.int64]]],
    poisson: Inclusions,
) -> None:
    assert has_property(poisson)
    assert not has_property(table(wrong_sampler()))


def test_a_batch_is_ascending_row_numbers_without_repeats() -> None:
    batch = poisson_batch(1000, 0.5, SecretRandom())
    assert batch.dtype == np.int64
    assert (np.diff(batch) > 0).all()
    assert batch.min() >= 0 and batch.max() < 1000


def test_rate_0_takes_none_and_rate_1_takes_all() -> None:
    random = SecretRandom()
    assert poisson_batch(10_000, 0.0, random).size == 0
    assert (poisson_batch(10_000, 1.0, random) == np.arange(10_000)).all()
    assert poisson_batch(0, 0.5, random).size == 0
