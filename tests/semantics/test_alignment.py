"""Alignment: right where it can be said by hand, unbiased under noise, silent where noise drowns the votes."""

from __future__ import annotations

import numpy as np
import pytest

from privimage.semantics.alignment import Aligned, effective_categories, mean_of, share_of_votes, similarity

VOTES = np.array([60.0, 30.0, 10.0, 0.0])
NOISE = 3.0
WIDE = np.concatenate([[90.0, 60.0, 40.0, 10.0], np.zeros(96)])


def noisy(draws: int = 4000) -> np.ndarray:
    return WIDE + NOISE * np.random.default_rng(0).standard_normal((draws, len(WIDE)))


def test_without_noise_the_figures_are_those_by_hand() -> None:
    assert share_of_votes(VOTES, [0, 2], 0.0) == Aligned(value=0.7, deviation=0.0)
    assert effective_categories(VOTES, 0.0) == pytest.approx(100**2 / (60**2 + 30**2 + 10**2))
    assert effective_categories(np.full(8, 5.0), 0.0) == pytest.approx(8)
    assert effective_categories(np.array([0.0, 7.0]), 0.0) == 1
    found = similarity(VOTES, np.array([1.0, 0.0, 1.0, 0.0]), 0.0)
    assert found is not None
    assert found.value == pytest.approx(70 / (np.sqrt(2) * np.sqrt(4600)))


def test_the_same_mix_is_one_at_any_size_and_a_disjoint_one_is_zero() -> None:
    same, other = similarity(VOTES, 3 * VOTES, 0.0), similarity(VOTES, np.array([0.0, 0.0, 0.0, 9.0]), 0.0)
    assert same is not None and other is not None
    assert same.value == pytest.approx(1)
    assert other.value == 0


def test_noise_moves_no_figure_on_average_and_scatters_it_by_the_deviation_stated() -> None:
    """Over 4,000 draws a mean is known to 1/63 of the scatter; a plain cosine would be 7 scatters too low."""
    mix = np.concatenate([[30.0, 30.0, 30.0], np.zeros(97)])
    chosen = [0, 1]
    cases = [
        (similarity(WIDE, mix, 0.0), [similarity(row, mix, NOISE) for row in noisy()]),
        (share_of_votes(WIDE, chosen, 0.0), [share_of_votes(row, chosen, NOISE) for row in noisy()]),
    ]
    for exact, found in cases:
        assert exact is not None
        there = [one for one in found if one is not None]
        assert len(there) == len(found)
        values, stated = np.array([one.value for one in there]), np.mean([one.deviation for one in there])
        assert abs(values.mean() - exact.value) < 0.25 * values.std()
        assert 0.6 < stated / values.std() < 1.6
    spread = [effective_categories(row, NOISE) for row in noisy()]
    exact_spread = effective_categories(WIDE, 0.0)
    assert exact_spread is not None
    assert np.mean([value for value in spread if value is not None]) == pytest.approx(exact_spread, rel=0.1)


def test_votes_that_may_be_noise_alone_give_no_figure() -> None:
    draws = NOISE * np.random.default_rng(1).standard_normal((2000, 50))
    for figure in (
        lambda row: similarity(row, np.ones(50), NOISE),
        lambda row: share_of_votes(row, [0], NOISE),
        lambda row: effective_categories(row, NOISE),
    ):
        said = sum(figure(row) is not None for row in draws)
        assert said < 0.06 * len(draws)
    assert similarity(VOTES, np.zeros(4), 0.0) is None


def test_a_mean_is_over_the_classes_that_have_the_figure() -> None:
    figures = [Aligned(value=0.2, deviation=0.3), None, Aligned(value=0.4, deviation=0.4)]
    mean = mean_of(figures)
    assert mean is not None
    assert (mean.value, mean.deviation) == (pytest.approx(0.3), pytest.approx(0.25))
    assert mean_of([None]) is None
