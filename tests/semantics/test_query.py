"""The semantic query: exact counts, a sensitivity that holds for every image, and the accounted noise on every cell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest

from privimage.errors import DataError, PrivacyRefused
from privimage.privacy import counts as noise_on_counts
from privimage.privacy.counts import add_noise
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import HistogramQuery
from privimage.semantics.query import top_votes, vote_histogram

ALARM = 1e-9


def mechanism(num_votes: int = 3, num_classes: int = 4, num_categories: int = 9, noise: float = 5.0) -> HistogramQuery:
    return HistogramQuery(
        num_votes=num_votes, num_classes=num_classes, num_categories=num_categories, noise_multiplier=noise
    )


def some_votes(num: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(num, 9)))
    return top_votes(logits, 3), generator.integers(0, 4, num)


def test_votes_go_to_the_highest_scores() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.5, -1.0], [3.0, -2.0, 1.0, 2.0]])
    assert top_votes(logits, 2).tolist() == [[1, 2], [0, 3]]


def test_counts_are_exact() -> None:
    votes, labels = some_votes(500)
    expected = np.zeros((4, 9), dtype=np.int64)
    for row, label in zip(votes, labels, strict=True):
        for category in row:
            expected[label, category] += 1
    found = vote_histogram(votes, labels, mechanism())
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == 1500 and found.dtype == np.int64


def test_zeroing_out_any_image_changes_the_histogram_by_exactly_the_stated_sensitivity() -> None:
    votes, labels = some_votes(60)
    whole = vote_histogram(votes, labels, mechanism())
    for number in range(60):
        change = whole - vote_histogram(np.delete(votes, number, 0), np.delete(labels, number), mechanism())
        assert np.linalg.norm(change) == pytest.approx(mechanism().sensitivity) == pytest.approx(math.sqrt(3))
        assert set(np.flatnonzero(change.any(1))) == {labels[number]}


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=9, max_size=9),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_logits_whatsoever_give_valid_votes(logits: list[list[float]]) -> None:
    votes = top_votes(torch.tensor(logits, dtype=torch.float32), 3)
    found = vote_histogram(votes, np.zeros(len(logits), dtype=np.int64), mechanism())
    assert found.max() <= len(logits)
    assert found.sum() == 3 * len(logits)


def test_a_nan_scores_lowest() -> None:
    nan = float("nan")
    assert sorted(top_votes(torch.tensor([[nan, -5.0, nan, -1e30]]), 2)[0].tolist()) == [1, 3]
    assert len(set(top_votes(torch.full((1, 9), nan), 3)[0].tolist())) == 3


def test_no_images_give_a_histogram_of_zeros() -> None:
    empty = vote_histogram(np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64), mechanism())
    assert empty.shape == (4, 9) and not empty.any()


@pytest.mark.parametrize(
    ("votes", "labels", "message"),
    [
        ([[0, 1, 1]], [0], "votes twice"),
        ([[2, 1, 2]], [0], "votes twice"),
        ([[0, 1, 9]], [0], "out of range"),
        ([[0, 1, -1]], [0], "out of range"),
        ([[0, 1, 2]], [4], "out of range"),
        ([[0, 1, 2]], [-1], "out of range"),
        ([[0, 1]], [0], "exactly num_votes"),
        ([[0, 1, 2, 3]], [0], "exactly num_votes"),
        ([[0, 1, 2], [0, 1, 2]], [0], "exactly num_votes"),
    ],
)
def test_votes_that_would_break_the_sensitivity_are_refused(
    votes: list[list[int]], labels: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        vote_histogram(np.array(votes), np.array(labels), mechanism())


@pytest.mark.parametrize(("num_votes", "noise"), [(1, 0.4), (3, 5.0), (5, 40.0)])
def test_released_noise_has_the_accounted_scale_and_no_other(num_votes: int, noise: float) -> None:
    wide = mechanism(num_votes=num_votes, num_classes=100, num_categories=200, noise=noise)
    counts = np.arange(20_000).reshape(100, 200) % 37
    accounted = wide.event.noise_multiplier * wide.sensitivity
    draws = ((add_noise(counts, wide) - counts) / accounted).ravel()
    assert kstest(draws, "norm").pvalue > ALARM
    assert kstest(draws * 2 / 3, "norm").pvalue < ALARM
    assert kstest(draws * 3 / 2, "norm").pvalue < ALARM


def test_every_cell_has_noise_of_its_own_and_every_release_too() -> None:
    counts = np.zeros((4, 9), dtype=np.int64)
    first, second = add_noise(counts, mechanism(noise=50.0)), add_noise(counts, mechanism(noise=50.0))
    assert first.shape == (4, 9)
    assert (first != 0).sum() > 30 and len(np.unique(first)) > 30
    assert (first != second).sum() > 30


def test_seeds_do_not_reproduce_the_noise() -> None:
    state = torch.get_rng_state()
    released = []
    for _ in range(2):
        torch.manual_seed(0)
        released.append(add_noise(np.zeros((4, 9), dtype=np.int64), mechanism(noise=50.0)))
    torch.set_rng_state(state)
    assert (released[0] != released[1]).sum() > 30


def test_noise_lies_on_the_exact_lattice() -> None:
    scaled = add_noise(np.zeros((4, 9), dtype=np.int64), mechanism(noise=50.0)) * 2**20
    np.testing.assert_array_equal(scaled, np.round(scaled))
    assert (scaled % 1024 != 0).any()


def test_noise_that_is_too_small_for_the_lattice_is_refused() -> None:
    """Where the discrete Gaussian may differ from the accounted one by more than is part of epsilon."""
    with pytest.raises(PrivacyRefused, match=r"on 36 numbers is too small for a lattice of 1/1048576"):
        add_noise(np.zeros((4, 9), dtype=np.int64), mechanism(noise=1e-3))
    add_noise(np.zeros((4, 9), dtype=np.int64), mechanism(noise=1e-2))


def test_noise_that_opendp_does_not_confirm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HistogramQuery, "noise_stddev", property(lambda self: 0.99 * self.noise_multiplier * 3**0.5))
    with pytest.raises(PrivacyRefused, match="above what its noise multiplier accounts for"):
        add_noise(np.zeros((4, 9), dtype=np.int64), mechanism())


def test_reproducible_noise_comes_from_the_source_for_tests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.zeros((100, 200), dtype=np.int64)
    wide = mechanism(num_classes=100, num_categories=200)
    first, again = (add_noise(counts, wide, insecure_random=InsecureRandomForTests(1)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert kstest((first / wide.noise_stddev).ravel(), "norm").pvalue > ALARM

    class Reached(Exception):
        pass

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(noise_on_counts.opendp.m, "make_gaussian", reached)
    with pytest.raises(Reached):
        add_noise(counts, wide)
    add_noise(counts, wide, insecure_random=InsecureRandomForTests(1))
