"""The space of features: what is fitted to public images, and how many dimensions are worth their noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.semantics.discriminant import (
    Discriminant,
    class_means_of,
    overconfidence,
    summed_vectors,
    temperature_of,
)
from privimage.semantics.space import FeatureSpace, FeatureStatistics, dimensions_worth_their_noise, fit_space

CATEGORIES, FEATURES = 12, 20


def drawn(per_category: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Categories that differ in three directions, around which features spread by unlike amounts, and correlated."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    centres = np.zeros((CATEGORIES, FEATURES))
    centres[:, :3] = truth.normal(0, 4, (CATEGORIES, 3)) * [3, 2, 1]
    mixing = truth.normal(0, 1, (FEATURES, FEATURES)) + 3 * np.eye(FEATURES)
    labels = np.repeat(np.arange(CATEGORIES), per_category)
    rows = centres[labels] + random.normal(0, 1, (len(labels), FEATURES)) @ mixing
    return (100 + rows).astype(np.float32), labels


def fitted(per_category: int = 200) -> tuple[FeatureSpace, NDArray[np.float32], NDArray[np.int64]]:
    features, labels = drawn(per_category)
    statistics = FeatureStatistics(CATEGORIES, FEATURES)
    for rows in np.array_split(np.arange(len(labels)), 7):
        statistics.add(features[rows], labels[rows])
    return fit_space(statistics), features, labels


def test_features_are_white_within_categories_and_the_first_directions_tell_categories_apart() -> None:
    space, features, labels = fitted()
    rows = (features - space.mean) @ space.directions
    within = np.concatenate([rows[labels == each] - rows[labels == each].mean(0) for each in range(CATEGORIES)])
    covariance = np.cov(within.T)
    # Directions of little variance are not blown up to it: the covariance is shrunk.
    assert (np.diag(covariance) > 0.2).all() and (np.diag(covariance) < 1.2).all()
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.35
    assert (space.told_apart[:3] > 0.2).all() and (space.told_apart[4:] < 0.1).all()
    assert (np.diff(space.told_apart) <= 1e-6).all()


def test_how_the_images_are_cut_into_batches_changes_nothing() -> None:
    features, labels = drawn(50)
    whole, parts = FeatureStatistics(CATEGORIES, FEATURES), FeatureStatistics(CATEGORIES, FEATURES)
    whole.add(features, labels)
    for rows in np.array_split(np.arange(len(labels)), 5):
        parts.add(features[rows], labels[rows])
    one, other = fit_space(whole), fit_space(parts)
    assert np.allclose(one.mean, other.mean, atol=1e-4)
    assert np.allclose(one.told_apart, other.told_apart, atol=1e-4)


def test_vectors_have_norm_one_each_of_its_own_image() -> None:
    space, features, _ = fitted(50)
    vectors = space.first(5).vectors(features)
    assert vectors.shape == (len(features), 5)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(space.first(5).vectors(features[3:4]), vectors[3:4], atol=1e-5)
    broken = features[:3].copy()
    broken[1, 2] = np.inf
    found = space.first(5).vectors(broken)
    assert not np.isfinite(found[1]).any() and np.allclose(found[[0, 2]], vectors[[0, 2]], atol=1e-5)


def test_the_more_noise_the_fewer_dimensions_are_worth_it() -> None:
    space, _, _ = fitted()
    worth = [dimensions_worth_their_noise(space, noise_in_means=noise) for noise in (0.0, 0.01, 0.05, 0.2, 0.5)]
    assert worth == sorted(worth, reverse=True) and worth[0] > worth[-1] >= 1
    with pytest.raises(DataError, match="hides all that they tell"):
        dimensions_worth_their_noise(space, noise_in_means=50.0)


def test_a_space_is_written_and_read(tmp_path: Path) -> None:
    space, _, _ = fitted(20)
    space.save(tmp_path / "space.safetensors")
    again = FeatureSpace.load(tmp_path / "space.safetensors")
    assert np.array_equal(space.directions, again.directions) and np.array_equal(space.mean, again.mean)


def test_what_cannot_be_fitted_is_refused() -> None:
    features, labels = drawn(5)
    with pytest.raises(DataError, match="not a finite number"):
        FeatureStatistics(CATEGORIES, FEATURES).add(np.full((2, FEATURES), np.nan), labels[:2])
    with pytest.raises(DataError, match="found 0 images of 0"):
        fit_space(FeatureStatistics(CATEGORIES, FEATURES))
    one = FeatureStatistics(CATEGORIES, FEATURES)
    one.add(features[labels == 0], labels[labels == 0])
    with pytest.raises(DataError, match="two categories or more"):
        fit_space(one)
    same = FeatureStatistics(2, 3)
    same.add(np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1]))
    with pytest.raises(DataError, match="are the same"):
        fit_space(same)


def test_the_means_of_summed_vectors_are_those_of_the_vectors_and_sizes_are_counted() -> None:
    space, features, labels = fitted(50)
    vectors = space.first(5).vectors(features)
    rows = summed_vectors(vectors)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    sums = np.zeros((CATEGORIES, 6))
    np.add.at(sums, labels, rows)
    means, sizes = class_means_of(sums, len(labels))
    assert np.allclose(sizes, 50, atol=1e-2)
    assert np.allclose(means, [vectors[labels == each].mean(0) for each in range(CATEGORIES)], atol=1e-4)
    sums[0, -1] = -3.0  # what noise may make of a small class
    assert class_means_of(sums, len(labels))[1][0] == pytest.approx(5.0)


def test_probabilities_are_honest_and_tell_the_classes() -> None:
    space, features, labels = fitted(200)
    space = space.first(4)
    vectors = space.vectors(features)
    factor = overconfidence(vectors, labels, num_classes=CATEGORIES, noise_in_means=0.01)
    means = np.stack([vectors[labels == each].mean(0) for each in range(CATEGORIES)])
    seen, theirs = drawn(200, seed=1)
    found = Discriminant(space=space, means=means, temperature=temperature_of(means, factor)).probabilities(seen)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    right = found.argmax(1) == theirs
    assert right.mean() > 2 / CATEGORIES
    assert abs(right.mean() - found.max(1).mean()) < 0.15, "they are as sure as they are right"
