"""Validation counts: one image moves them by no more than is accounted for."""

from __future__ import annotations

import math

import dp_accounting as dpa
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest

from privimage.errors import ConfigError, DataError
from privimage.evaluation.validation import correct_counts
from privimage.privacy.counts import add_noise
from privimage.privacy.mechanisms import ValidationCount

NUM_IMAGES = 50
CASES = [(1, 1), (3, 1), (2, 4), (6, 3)]


def mechanism(candidates: int, seeds: int, noise: float = 7.0) -> ValidationCount:
    return ValidationCount(num_images=NUM_IMAGES, num_candidates=candidates, votes_each=seeds, noise_multiplier=noise)


def some_hits(candidates: int, seeds: int) -> list[NDArray[np.bool_]]:
    generator = np.random.default_rng(candidates)
    return [generator.random((seeds, NUM_IMAGES)) < 0.6 for _ in range(candidates)]


@pytest.mark.parametrize(("candidates", "seeds"), CASES)
def test_zeroing_out_any_image_moves_the_counts_by_at_most_the_sensitivity_which_is_reached(
    candidates: int, seeds: int
) -> None:
    hits = some_hits(candidates, seeds)
    for each in hits:
        each[:, 7] = True  # an image that every training of every classifier recognises
    validation = mechanism(candidates, seeds)
    whole = correct_counts(hits, validation)
    assert whole.tolist() == [each.sum() for each in hits]
    moved = []
    for image in range(NUM_IMAGES):
        without = [each.copy() for each in hits]
        for each in without:
            each[:, image] = False
        moved.append(float(np.linalg.norm(whole - correct_counts(without, validation))))
    assert max(moved) == moved[7] == pytest.approx(validation.sensitivity)
    assert validation.sensitivity == pytest.approx(seeds * math.sqrt(candidates))


@pytest.mark.parametrize(("candidates", "seeds"), CASES)
def test_what_is_accounted_is_the_noise_that_is_added_for_every_attempt_that_may_run(
    candidates: int, seeds: int
) -> None:
    validation = mechanism(candidates, seeds)
    gaussian = dpa.GaussianDpEvent(validation.noise_stddev / validation.sensitivity)
    assert isinstance(validation.event, dpa.SelfComposedDpEvent)
    assert validation.event.count == 2 == 1 + validation.restart_allowance
    assert validation.event.event.noise_multiplier == pytest.approx(gaussian.noise_multiplier, rel=1e-12)


def test_released_counts_have_noise_of_the_accounted_scale() -> None:
    wide = ValidationCount(num_images=NUM_IMAGES, num_candidates=4000, votes_each=3, noise_multiplier=2.0)
    counts = np.arange(4000, dtype=np.int64)
    draws = (add_noise(counts, wide) - counts) / (2.0 * 3 * math.sqrt(4000))
    assert kstest(draws, "norm").pvalue > 1e-9
    assert not np.array_equal(add_noise(counts, wide), add_noise(counts, wide))


@pytest.mark.parametrize("change", ["one more", "one less", "another seed", "fewer images", "counts"])
def test_what_was_not_accounted_for_is_refused(change: str) -> None:
    hits: list[NDArray[np.bool_]] = some_hits(2, 3)
    if change == "one more":
        hits.append(hits[0])
    elif change == "one less":
        hits.pop()
    elif change == "another seed":
        hits[1] = np.concatenate([hits[1], hits[1][:1]])
    elif change == "fewer images":
        hits[1] = hits[1][:, 1:]
    else:
        hits[1] = 2 * hits[1].astype(np.int64)  # type: ignore[assignment]
    with pytest.raises(DataError, match="do not fit the validation that was charged"):
        correct_counts(hits, mechanism(2, 3))


def test_a_validation_without_noise_or_without_images_is_refused() -> None:
    for noise in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="noise_multiplier"):
            mechanism(2, 1, noise)
    with pytest.raises(ConfigError, match=r"found 0 images.*validation_fraction"):
        ValidationCount(num_images=0, num_candidates=1, votes_each=1, noise_multiplier=1.0)
