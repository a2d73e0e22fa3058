"""FID and KID against closed forms and against clean-fid itself."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from cleanfid.fid import fid_from_feats, kernel_distance

from privimage.errors import DataError
from privimage.evaluation import fidelity
from privimage.evaluation.fidelity import fid, kid


def features(num: int, size: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, size)) + shift


def test_fid_of_a_shifted_set_is_the_squared_shift() -> None:
    a = features(200)
    assert fid(a, a + 0.5) == pytest.approx(6 * 0.25, abs=1e-9)


def test_fid_of_a_scaled_set_is_that_of_two_gaussians() -> None:
    a = features(500) - features(500).mean(axis=0)
    # Sigma_b = 4 Sigma_a, so the distance is Tr(Sigma_a + 4 Sigma_a - 2 * 2 Sigma_a) = Tr(Sigma_a).
    assert fid(a, 2 * a) == pytest.approx(np.trace(np.cov(a, rowvar=False)), rel=1e-9)


def test_fid_equals_clean_fid_and_is_symmetric() -> None:
    a, b = features(120), features(80, shift=0.3, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = fid_from_feats(a, b)
    assert fid(a, b) == pytest.approx(expected, rel=1e-12)
    assert fid(b, a) == pytest.approx(expected, rel=1e-9)


def test_identical_sets_are_at_distance_zero() -> None:
    a = features(50)
    assert 0 <= fid(a, a) < 1e-6
    assert fid(a[:4], a[:4]) == pytest.approx(0, abs=1e-3)  # fewer images than features: singular covariances


def test_kid_equals_clean_fid_over_all_pairs() -> None:
    a, b = features(60), features(60, shift=0.2, seed=1)
    assert kid(a, b) == pytest.approx(kernel_distance(a, b, num_subsets=1, max_subset_size=60), rel=1e-9)


def test_kid_is_the_expectation_of_clean_fids_random_subsets() -> None:
    a, b = features(90), features(60, shift=0.4, seed=1)
    state = np.random.get_state()
    try:
        np.random.seed(0)
        expected = kernel_distance(a, b, num_subsets=400, max_subset_size=30)
    finally:
        np.random.set_state(state)
    assert kid(a, b) == pytest.approx(expected, rel=0.1)


def test_kid_of_sets_from_one_distribution_is_near_zero() -> None:
    a, b = features(1500), features(1500, seed=1)
    assert abs(kid(a, b)) < 0.02 < kid(a, b + 0.3)


def test_kid_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(70), features(50, shift=0.2, seed=1)
    whole = kid(a, b)
    monkeypatch.setattr(fidelity, "KERNEL_ROWS", 16)
    assert kid(a, b) == pytest.approx(whole, rel=1e-9)


def test_kid_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    kid(features(10), features(10, seed=1))
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("distance", [fid, kid])
def test_one_image_is_too_few(distance) -> None:
    with pytest.raises(DataError, match="Found 1 and 5 images.*at least 2"):
        distance(features(1), features(5))


@pytest.mark.parametrize("distance", [fid, kid])
def test_features_of_another_length_or_not_finite_are_refused(distance) -> None:
    with pytest.raises(DataError, match="same number of features"):
        distance(features(5), features(5, size=4))
    broken = features(5)
    broken[2, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        distance(broken, features(5))


@pytest.mark.parametrize("distance", [fid, kid])
def test_an_overflow_is_an_error_and_never_nan(distance) -> None:
    with np.errstate(all="ignore"), pytest.raises(DataError, match="undefined"):
        distance(features(5) * 1e200, features(5, seed=1))
