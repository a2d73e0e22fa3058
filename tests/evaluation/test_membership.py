"""Attacks are judged right, intervals hold, and few images are a sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privimage.errors import DataError
from privimage.evaluation.membership import membership


def scores(num: int, shift: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=num) + shift


def test_the_area_is_that_of_all_pairs_and_a_tie_counts_one_half() -> None:
    members, others = scores(120, 0.5, 0).round(1), scores(150, 0.0, 1).round(1)
    pairs = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    assert membership(members, others, 1e-5).auc.value == pytest.approx(float(pairs.mean()), rel=1e-12)


def test_the_interval_of_the_area_holds_as_often_as_it_says() -> None:
    true = 0.5 * (1 + math.erf(0.7 / 2))
    found = [membership(scores(150, 0.7, 2 * n), scores(120, 0.0, 2 * n + 1), 1e-5).auc for n in range(200)]
    assert 0.88 < np.mean([each.low <= true <= each.high for each in found]) <= 1


def test_scores_that_tell_nothing_are_an_area_of_a_half_and_no_epsilon() -> None:
    found = [membership(scores(400, 0, 2 * n), scores(300, 0, 2 * n + 1), 1e-5) for n in range(20)]
    assert np.mean([each.auc.value for each in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([each.tpr.value for each in found]) == pytest.approx(0.01, abs=0.01)
    assert sum(each.epsilon > 0 for each in found) <= 4


def test_scores_that_tell_all_show_it_in_every_number() -> None:
    found = membership(scores(400, 50, 0), scores(300, 0, 1), 1e-5)
    assert (found.auc.value, found.tpr.value) == (1.0, 1.0)
    assert found.tpr.low == pytest.approx(0.025 ** (1 / 400))
    assert 3 < found.epsilon < 5
    assert (found.members, found.others) == (400, 300)


def test_at_most_the_stated_share_of_others_is_taken_for_members() -> None:
    members, others = np.linspace(0, 1, 1000), np.linspace(0, 1, 200)
    found = membership(members, others, 1e-5)
    threshold = members[round(1000 * (1 - found.tpr.value)) :].min()
    assert (others > threshold).mean() <= 0.01


def test_too_few_images_are_a_sentence_that_says_how_many_are_needed() -> None:
    with pytest.raises(DataError, match="at least 100 training and 100 test images, found 2,000 and 99"):
        membership(scores(2000, 0, 0), scores(99, 0, 1), 1e-5)


def test_losses_that_are_no_numbers_are_refused() -> None:
    bad = scores(200, 0, 0)
    bad[5] = np.inf
    with pytest.raises(DataError, match="the generator diverged"):
        membership(scores(200, 0, 1), bad, 1e-5)
