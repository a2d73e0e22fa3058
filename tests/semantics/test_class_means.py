"""class mean images: differences from a public mean, what bounds them, and what sums are divided by."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.privacy.class_sums import PER_UNIT, class_sums
from privimage.privacy.mechanisms import ClassSums
from privimage.semantics.class_means import Differences, class_sizes, largest_norm, mean_image


def some_images(num: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num, 3, 4, 4), dtype=np.uint8)


def batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [images[:7], images[7:8], images[8:]]


def as_pixels(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = images.astype(np.float64) / 127.5 - 1
    return found


def test_the_mean_and_the_norm_are_those_of_all_public_images() -> None:
    images = some_images(30)
    mean = mean_image(batches(images))
    np.testing.assert_allclose(mean, as_pixels(images).mean(axis=0), rtol=1e-12)
    norms = [np.linalg.norm(image - mean) for image in as_pixels(images)]
    assert largest_norm(batches(images), mean) == pytest.approx(np.median(norms))


def test_public_images_that_are_none_or_all_equal_are_refused() -> None:
    with pytest.raises(DataError, match="no public images"):
        mean_image([])
    equal = np.zeros((9, 3, 4, 4), dtype=np.uint8)
    with pytest.raises(DataError, match=r"give generator\.class_means\.max_norm"):
        largest_norm(batches(equal), mean_image(batches(equal)))


def test_sums_of_differences_give_back_the_class_means_where_no_image_is_cut() -> None:
    images, labels = some_images(5000), np.arange(5000) % 3
    reference = mean_image([some_images(20, seed=1)])
    rows = Differences(images=images, reference=reference, max_norm=20.0)
    mechanism = ClassSums(num_images=5000, num_classes=3, dimension=48, noise_multiplier=1.0)
    means = class_sums(rows, labels, mechanism) / PER_UNIT * 20.0 / np.bincount(labels)[:, None]
    for label in range(3):
        expected = as_pixels(images[labels == label]).mean(axis=0)
        np.testing.assert_allclose(means[label].reshape(3, 4, 4) + reference, expected, atol=1e-4)


def test_a_difference_that_is_longer_than_the_bound_is_cut_to_it() -> None:
    images = np.full((2, 3, 4, 4), 255, dtype=np.uint8)
    reference = np.full((3, 4, 4), -1.0)
    rows = Differences(images=images, reference=reference, max_norm=0.5)
    mechanism = ClassSums(num_images=2, num_classes=2, dimension=48, noise_multiplier=1.0)
    found = class_sums(rows, np.array([0, 1]), mechanism) / PER_UNIT
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-4)


def test_sizes_are_equal_without_votes_and_of_the_votes_with_them() -> None:
    assert class_sizes(4, 100, None, 1).tolist() == [25.0] * 4
    votes = np.array([[100.0, 20.0], [30.0, 30.0], [-5.0, -7.0], [1e9, 0.0]])
    assert class_sizes(4, 100, votes, 3).tolist() == [40.0, 20.0, 2.5, 100.0]
