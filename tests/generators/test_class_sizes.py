"""Sizes of classes: the shares that the votes tell, and images whose classes meet them, in any range of numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privimage.generators.sampling.class_sizes import SMALLEST_CLASS, labels_of, shares_by_votes, standard_error

SHARES = (
    [0.5, 0.3, 0.2],
    [0.01] + [0.99 / 9] * 9,
    [0.245, 0.19, 0.147, 0.114, 0.088, 0.068, 0.053, 0.041, 0.032, 0.022],
)


def test_without_shares_classes_are_in_turn() -> None:
    assert labels_of(torch.arange(5, 12), 3).tolist() == [2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize(("first", "count"), [(0, 300), (0, 2000), (777, 1000), (9_990_000, 10_000)])
def test_any_range_of_numbers_meets_the_shares_to_a_few_images(shares: list[float], first: int, count: int) -> None:
    labels = labels_of(torch.arange(first, first + count), len(shares), shares)
    found = labels.bincount(minlength=len(shares)).double()
    assert (found - count * torch.tensor(shares, dtype=torch.float64)).abs().max() < 3


def test_a_class_depends_on_the_number_of_the_image_alone() -> None:
    whole = labels_of(torch.arange(1000), 3, SHARES[0])
    assert torch.equal(labels_of(torch.arange(400, 500), 3, SHARES[0]), whole[400:500])


def test_votes_without_noise_tell_the_very_shares() -> None:
    histogram = np.array([[70, 30, 100], [10, 80, 10], [0, 0, 300]])  # two votes an image
    assert shares_by_votes(histogram, 2) == pytest.approx([1 / 3, 1 / 6, 1 / 2])


def test_a_class_that_noise_made_tiny_or_negative_has_a_tenth_of_the_mean() -> None:
    shares = shares_by_votes([[900.0, 100.0], [-300.0, 100.0]], 1)
    assert shares == pytest.approx([1 / (1 + SMALLEST_CLASS / 2), SMALLEST_CLASS / 2 / (1 + SMALLEST_CLASS / 2)])
    smallest = min(min(shares_by_votes(votes, 1)) for votes in np.random.default_rng(0).normal(size=(200, 5, 4)))
    assert 0.09 / 5 < smallest < 0.1 / 5
    assert shares_by_votes([[-5.0, -9.0], [-1.0, -2.0]], 1) == pytest.approx([0.5, 0.5])


def test_the_standard_error_is_that_of_many_draws_of_noise() -> None:
    random = np.random.default_rng(0)
    drawn = random.normal(scale=20.0, size=(4000, 26)).sum(1) / 2
    assert standard_error(20.0, 26, 2) == pytest.approx(float(drawn.std()), rel=0.05)
