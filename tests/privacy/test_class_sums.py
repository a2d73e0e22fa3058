"""Class sums: exact sums, a sensitivity that holds for every vector, and the accounted noise on every number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest

from privimage.errors import ConfigError, DataError, PrivacyRefused
from privimage.privacy.class_sums import PER_UNIT, class_sums, noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums

ALARM = 1e-9
CLASSES = 4


def mechanism(num_images: int, dimension: int, noise: float = 5.0) -> ClassSums:
    return ClassSums(num_images=num_images, num_classes=CLASSES, dimension=dimension, noise_multiplier=noise)


def odd_vectors() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Short, long, huge, tiny and signed-zero vectors, and some that are no vectors."""
    generator = np.random.default_rng(0)
    short = generator.normal(size=(10, 48)) / 48
    odd = [
        np.full(48, 1e308),
        np.full(48, -1e200),
        np.full(48, 5e-324),
        np.full(48, -0.0),
        np.full(48, np.nan),
        np.full(48, np.inf),
        np.where(np.arange(48) == 7, -np.inf, 0.1),
        np.where(np.arange(48) == 7, np.nan, 1e300),
        np.where(np.arange(48) < 2, 1e308, 0.0),
        np.full(48, 1 / math.sqrt(48)),
        np.where(np.arange(48) < 4, 0.5, 0.0),
        np.where(np.arange(48) == 0, 1.0, 0.0),
        np.where(np.arange(48) == 0, np.nextafter(1.0, 2.0), 0.0),
    ]
    vectors = np.concatenate([short, 100 * short, np.stack(odd)])
    return vectors, generator.integers(0, CLASSES, len(vectors))


def test_the_class_sums_account_for_the_noise_they_add() -> None:
    stated = mechanism(10, 3)
    assert stated.sensitivity == 1.0
    assert stated.event.noise_multiplier == stated.noise_stddev / stated.sensitivity == 5.0


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.nan, math.inf])
def test_noise_that_is_no_positive_number_is_refused(noise_multiplier: float) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier must be positive and finite"):
        replace(mechanism(10, 3), noise_multiplier=noise_multiplier)


@pytest.mark.parametrize("nothing", ["num_images", "num_classes", "dimension"])
def test_sums_of_nothing_are_refused(nothing: str) -> None:
    with pytest.raises(ConfigError, match="need images, classes and numbers"):
        replace(mechanism(10, 3), **{nothing: 0})


def test_short_vectors_are_summed_as_they_are_and_long_ones_with_norm_one() -> None:
    generator = np.random.default_rng(1)
    vectors, labels = generator.normal(size=(10_000, 6)), generator.integers(0, CLASSES, 10_000)
    vectors[::2] /= 10
    norms = np.linalg.norm(vectors, axis=1)
    assert 0.3 < (norms > 1).mean() < 0.6
    found = class_sums(vectors, labels, mechanism(10_000, 6)) / PER_UNIT
    for label in range(CLASSES):
        expected = sum(v / max(1.0, n) for v, n, c in zip(vectors, norms, labels, strict=True) if c == label)
        # Rounding towards zero takes at most one unit of each number of each image.
        np.testing.assert_allclose(found[label], expected, rtol=0, atol=(labels == label).sum() / PER_UNIT)


def test_zeroing_out_any_image_changes_one_sum_by_at_most_the_stated_sensitivity() -> None:
    vectors, labels = odd_vectors()
    stated = mechanism(len(vectors), 48)
    whole = class_sums(vectors, labels, stated)
    norms = []
    for number in range(len(vectors)):
        gone = vectors.copy()
        gone[number] = 0.0
        change = whole - class_sums(gone, labels, stated)
        # In exact integers.
        assert sum(int(c) ** 2 for c in change.ravel()) <= PER_UNIT**2
        assert set(np.flatnonzero(change.any(1))) <= {labels[number]}
        norms.append(np.linalg.norm(change) / PER_UNIT)
    assert max(norms) == 1.0 and sum(norm > 0.9999 for norm in norms) > 12


@given(
    st.lists(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=5, max_size=5), min_size=1, max_size=4)
)
@settings(max_examples=300, deadline=None)
def test_no_vector_whatsoever_passes_the_bound(vectors: list[list[float]]) -> None:
    labels = np.arange(len(vectors)) % CLASSES
    found = class_sums(np.array(vectors), labels, mechanism(len(vectors), 5))
    assert max(sum(int(c) ** 2 for c in row) for row in found) <= PER_UNIT**2


def test_no_rounding_makes_a_norm_grow() -> None:
    vectors = np.random.default_rng(2).normal(size=(CLASSES, 3000))
    for scale in (1e-3, 1.0, 1e6):
        found = class_sums(vectors * scale, np.arange(CLASSES), mechanism(CLASSES, 3000)).astype(np.float64)
        bounded = vectors * scale / np.maximum(1.0, np.linalg.norm(vectors * scale, axis=1, keepdims=True))
        assert (np.abs(found) <= np.abs(bounded) * PER_UNIT * (1 + 1e-12)).all()


def test_long_vectors_are_asked_for_a_few_at_a_time() -> None:
    """Else the memory for them, which no rehearsal asks for, is missing after the charge."""
    asked = []

    class Long:
        shape = (40, 3 * 256 * 256)

        def __getitem__(self, rows: slice) -> NDArray[np.float64]:
            vectors = np.zeros(self.shape)[rows]
            asked.append(len(vectors))
            vectors[:, 0] = 0.5
            return vectors

    found = class_sums(Long(), np.arange(40) % CLASSES, mechanism(*Long.shape))
    assert found[:, 0].tolist() == [5 * PER_UNIT] * CLASSES and not found[:, 1:].any()
    assert max(asked) * Long.shape[1] <= 1 << 22


def test_vectors_that_are_not_finite_count_as_zero() -> None:
    vectors = np.array([[np.inf, 0.0], [0.1, np.nan], [-np.inf, np.nan], [0.25, 0.5]])
    found = class_sums(vectors, np.zeros(4, dtype=np.int64), mechanism(4, 2)) / PER_UNIT
    assert found[0].tolist() == [0.25, 0.5]


def test_single_precision_is_summed_like_double_precision() -> None:
    vectors, labels = odd_vectors()
    vectors, labels = vectors[:20].astype(np.float32), labels[:20]
    stated = mechanism(20, 48)
    np.testing.assert_array_equal(
        class_sums(vectors, labels, stated), class_sums(vectors.astype(np.float64), labels, stated)
    )


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        ([0, 4], (2, 3), "out of range"),
        ([0, -1], (2, 3), "out of range"),
        ([0, 1], (2, 2), "do not fit"),
        ([0, 1, 2], (3, 3), "do not fit"),
        ([0], (2, 3), "do not fit"),
    ],
)
def test_labels_and_shapes_that_would_break_the_sensitivity_are_refused(
    labels: list[int], shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        class_sums(np.zeros(shape), np.array(labels), mechanism(2, 3))


@pytest.mark.parametrize("noise", [0.4, 10.0, 300.0])
def test_released_sums_have_the_accounted_noise_and_no_other(noise: float) -> None:
    vectors, labels = odd_vectors()
    vectors = np.tile(vectors, (1, 100))
    stated = mechanism(len(vectors), 4800, noise)
    exact = class_sums(vectors, labels, stated) / PER_UNIT
    draws = ((noisy_class_sums(vectors, labels, stated) - exact) / stated.event.noise_multiplier).ravel()
    assert kstest(draws, "norm").pvalue > ALARM
    assert kstest(draws * 2 / 3, "norm").pvalue < ALARM
    assert kstest(draws * 3 / 2, "norm").pvalue < ALARM


def test_every_number_has_noise_of_its_own_and_every_release_too() -> None:
    vectors, labels = np.zeros((2, 30)), np.array([0, 1])
    first, second = (noisy_class_sums(vectors, labels, mechanism(2, 30)) for _ in range(2))
    assert first.shape == (CLASSES, 30) and len(np.unique(first)) == CLASSES * 30
    assert (first != second).all()


def test_noise_that_opendp_does_not_confirm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassSums, "noise_stddev", property(lambda self: 0.99 * self.noise_multiplier))
    with pytest.raises(PrivacyRefused, match="above what its noise multiplier accounts for"):
        noisy_class_sums(np.zeros((1, 2)), np.array([0]), mechanism(1, 2))


def test_reproducible_noise_comes_from_the_source_for_tests_only() -> None:
    vectors, labels = np.zeros((2, 30)), np.array([0, 1])
    first, again = (
        noisy_class_sums(vectors, labels, mechanism(2, 30), insecure_random=InsecureRandomForTests(1)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
