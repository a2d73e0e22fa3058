"""Copies of training images are found, images that are merely alike are not, and few images are a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from privimage.errors import DataError
from privimage.evaluation import memorization as module
from privimage.evaluation.memorization import memorization, nearest


def images(num: int, seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, size))


def test_the_nearest_neighbours_are_those_of_a_plain_search_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries, among = images(50, 0) + 30, images(70, 1) + 30
    plain = cdist(queries, among)
    itself = cdist(queries, queries) + np.diag(np.full(50, np.inf))
    for sizes in ((1024, 8192), (7, 9), (50, 1)):
        monkeypatch.setattr(module, "_QUERIES", sizes[0])
        monkeypatch.setattr(module, "_AMONG", sizes[1])
        found, others = nearest(queries, among), nearest(queries, queries, others_only=True)
        assert found.rows.tolist() == plain.argmin(axis=1).tolist()
        assert np.allclose(found.distances, plain.min(axis=1), rtol=1e-12)
        assert others.rows.tolist() == itself.argmin(axis=1).tolist()


def test_equal_images_have_distance_zero_exactly() -> None:
    some = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.float32) / np.float32(255)
    assert not nearest(some[:9], some).distances.any()
    assert nearest(some[:9], some).rows.tolist() == list(range(9))


def test_without_memorization_half_are_nearer_to_training_and_the_p_values_are_even() -> None:
    found = [memorization(images(60, seed), images(90, 1000 + seed), images(70, 2000 + seed)) for seed in range(60)]
    assert np.mean([each.share_nearer_to_training for each in found]) == pytest.approx(0.5, abs=0.03)
    values = [each.p_value for each in found]
    assert np.mean(np.array(values) < 0.1) < 0.25 and 0.35 < np.mean(values) < 0.65
    assert {each.subset for each in found} == {70}


def test_that_many_synthetic_images_share_one_neighbour_is_one_chance_and_not_many() -> None:
    low = []
    for seed in range(60):
        training, test = images(40, seed), images(40, 1000 + seed)
        centre = np.concatenate([training, test])[seed % 80]
        low.append(memorization(centre + 1e-3 * images(200, 2000 + seed), training, test).p_value < 0.05)
    assert np.mean(low) < 0.2, "a binomial test would say so of half of them"


def test_copies_are_found_and_shown_nearest_first() -> None:
    training, test = images(100, 1), images(100, 2)
    synthetic = images(50, 3)
    synthetic[4] = training[17]
    synthetic[20:30] = training[40:50] + 0.01
    found = memorization(synthetic, training, test, pairs=3)
    assert found.exact_copies == 1
    assert 11 <= found.near_copies <= 13, "of 39 others one in a hundred comes as near by chance"
    assert found.pairs[0] == (4, 17, 0.0)
    assert [synthetic_row for synthetic_row, *_ in found.pairs[1:]] == sorted(
        range(20, 30), key=lambda row: float(np.linalg.norm(synthetic[row] - training[row + 20]))
    )[:2]
    assert all(row + 20 == other for row, other, _ in found.pairs[1:])
    assert found.p_value < 0.05
    assert found.median_to_training < found.median_to_test


def test_near_copies_are_as_frequent_among_honest_images_as_among_held_out_ones() -> None:
    found = memorization(images(2000, 1), images(500, 2), images(1000, 3))
    assert 4 <= found.near_copies <= 45, "20 expected"


def test_duplicates_among_synthetic_images_are_counted() -> None:
    synthetic = images(40, 3)
    synthetic[1] = synthetic[0]
    synthetic[2] = synthetic[0]
    synthetic[7] = synthetic[8] + 1e-3
    found = memorization(synthetic, images(60, 1), images(60, 2))
    assert (found.exact_duplicates, found.near_duplicates) == (3, 5)


def test_images_that_are_in_both_sets_count_for_neither() -> None:
    both = images(80, 1)
    found = memorization(np.repeat(both, 5, axis=0), both, both)
    assert found.share_nearer_to_training == pytest.approx(0.5, abs=0.1)
    assert found.p_value > 0.01


def test_too_few_images_are_a_sentence_that_says_how_many_are_needed() -> None:
    with pytest.raises(DataError, match="needs at least 20 images of each kind, found 19 training and 3 test"):
        memorization(images(20, 0), images(19, 1), images(3, 2))


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DataError, match="use one extractor"):
        nearest(images(20, 0), images(20, 1, size=3))
    bad = images(20, 0)
    bad[3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        memorization(images(20, 0), bad, images(20, 2))
