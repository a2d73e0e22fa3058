"""The Inception Score against its definition and its ends."""

from __future__ import annotations

import numpy as np
import pytest

from privimage.evaluation.inception_score import inception_scores

EQUAL = np.full((1, 6), 1 / 6)


def score(probabilities: np.ndarray) -> float:
    num = len(probabilities)
    return float(inception_scores(probabilities, np.full((1, num), 1 / num))[0])


def test_sure_and_balanced_predictions_score_the_number_of_categories() -> None:
    assert score(np.eye(3)[[0, 1, 2, 0, 1, 2]]) == pytest.approx(3)


def test_predictions_that_are_all_alike_score_one_sure_or_not() -> None:
    assert score(np.eye(3)[[1, 1, 1, 1]]) == pytest.approx(1)
    assert score(np.full((4, 3), 1 / 3)) == pytest.approx(1)


def test_it_is_the_exponential_of_the_mean_divergence_from_the_mean_prediction() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    divergences = (p * np.log(p / p.mean(axis=0))).sum(axis=1)
    assert score(p) == pytest.approx(np.exp(divergences.mean()), rel=1e-12)


def test_a_weight_of_two_counts_an_image_twice() -> None:
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    weighted = inception_scores(p, np.array([[2 / 3, 1 / 3]]))[0]
    assert weighted == pytest.approx(score(p[[0, 0, 1]]), rel=1e-12)


def test_blurred_predictions_score_less() -> None:
    sharp = np.eye(5)[np.arange(50) % 5] * 0.9 + 0.02
    assert 1 < score(0.5 * sharp + 0.1) < score(sharp) < 5
