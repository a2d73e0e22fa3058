"""All measures together: what is computed and what is not, intervals that hold what they say, planted differences."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from privimage.errors import DataError
from privimage.evaluation.estimate import REPEATS, around, bootstrap_weights, share
from privimage.evaluation.features import network_extractor
from privimage.evaluation.fidelity import fid, kid, weighted_fids, weighted_kids
from privimage.evaluation.measures import MEASURES, Subject, measure


def features(num: int, shift: float = 0.0, seed: int = 0, size: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, size)) + shift


def subject(num: int = 300, shift: float = 0.0, *, seed: int = 0, categories: int | None = 5) -> Subject:
    probabilities = np.random.default_rng(2).dirichlet(np.ones(categories), num) if categories else None
    return Subject(
        synthetic=features(num, shift, seed), private=features(num, seed=seed + 1), probabilities=probabilities
    )


def test_each_measure_has_its_value_inside_its_interval_and_its_numbers_of_images() -> None:
    found = measure(subject(200))
    assert list(found.estimates) == ["FID", "KID", "precision", "recall", "Inception Score"]
    assert not found.not_computed
    for name, estimate in found.estimates.items():
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.low < estimate.high
        assert (estimate.num_synthetic, estimate.num_private) == (200, 0 if name == "Inception Score" else 200)


def test_the_values_are_those_of_the_plain_functions() -> None:
    these = subject(150, 0.3)
    found = measure(these).estimates
    assert found["FID"].value == fid(these.synthetic, these.private)
    assert found["KID"].value == pytest.approx(kid(these.synthetic, these.private), rel=1e-9)


def test_a_planted_difference_is_seen_by_every_measure_that_compares() -> None:
    same, other = measure(subject()).estimates, measure(subject(shift=1.0)).estimates
    for name in ("FID", "KID"):
        assert other[name].low > same[name].high
    for name in ("precision", "recall"):
        assert other[name].high < same[name].low


def test_a_collapse_is_seen_by_recall_and_not_by_precision() -> None:
    these = subject()
    collapsed = Subject(synthetic=these.private[:1] + 0.01 * these.synthetic, private=these.private, probabilities=None)
    found = measure(collapsed).estimates
    assert found["precision"].value > 0.95
    assert found["recall"].high < 0.1


@pytest.mark.parametrize("name", ["FID", "KID"])
def test_half_the_width_is_what_the_figure_scatters_by(name: str) -> None:
    """30 replicates know a standard deviation to 13 %, 40 draws to 11 %: outside of these bounds once in a thousand."""
    found = [measure(subject(150, 0.5, seed=2 * draw)).estimates[name] for draw in range(40)]
    scatter = np.std([estimate.value for estimate in found], ddof=1)
    stated = np.mean([(estimate.high - estimate.value) / 1.96 for estimate in found])
    assert 0.6 < stated / scatter < 1.6


def test_more_images_make_narrower_intervals() -> None:
    few, many = measure(subject(60, 0.5)).estimates, measure(subject(960, 0.5)).estimates
    for name in MEASURES:
        assert (many[name].high - many[name].low) < 0.6 * (few[name].high - few[name].low)


@pytest.mark.parametrize(
    ("synthetic", "private", "missing"),
    [
        (
            4,
            300,
            {"FID": "at least 5 images of each (more than there are features", "Inception Score": "found 4 synthetic"},
        ),
        (300, 3, {"FID": "300 synthetic and 3 test", "precision": "at least 4", "recall": "at least 4"}),
        (0, 9, {"FID": "0 synthetic and 9", "KID": "at least 2", "precision": "", "recall": "", "Inception Score": ""}),
        (5, 5, {}),
    ],
)
def test_too_few_images_are_a_reason_and_never_a_nan(synthetic: int, private: int, missing: dict[str, str]) -> None:
    found = measure(
        Subject(
            synthetic=features(synthetic),
            private=features(private, seed=1),
            probabilities=np.full((synthetic, 5), 0.2),
        )
    )
    assert set(found.not_computed) == set(missing)
    for name, reason in missing.items():
        assert reason in found.not_computed[name]
        assert found.not_computed[name].startswith("needs at least")
    assert set(found.estimates) == set(MEASURES) - set(missing)
    assert all(np.isfinite(astuple(estimate)).all() for estimate in found.estimates.values())


def test_without_categories_there_is_no_inception_score() -> None:
    found = measure(subject(20, categories=None))
    assert found.not_computed == {"Inception Score": "These features come with no categories."}


def test_what_cannot_be_computed_is_a_reason_too() -> None:
    huge = Subject(synthetic=features(20) * 1e200, private=features(20), probabilities=None)
    with np.errstate(all="ignore"):
        found = measure(huge)
    assert not found.estimates
    assert "undefined" in found.not_computed["FID"] and "undefined" in found.not_computed["KID"]
    assert "overflow" in found.not_computed["precision"] and "overflow" in found.not_computed["recall"]


def test_features_that_are_not_finite_are_refused() -> None:
    these = subject(20)
    these.private[3, 1] = np.inf
    with pytest.raises(DataError, match="not finite"):
        measure(these)


def test_it_is_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    assert measure(subject(50)) == measure(subject(50))
    assert np.array_equal(before, np.random.get_state()[1])


def test_the_batch_size_changes_nothing() -> None:
    kernel = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    head = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32))
    images = np.random.default_rng(2).integers(0, 256, (2, 40, 1, 8, 8), dtype=np.uint8)

    def found(batch_size: int) -> list[tuple[float, ...]]:
        extract = network_extractor("f", lambda x: x.flatten(1) @ kernel, "cpu", batch_size, head=lambda x: x @ head)
        synthetic, private = (extract(some) for some in images)
        these = Subject(synthetic=synthetic, private=private, probabilities=extract.probabilities(synthetic))
        return [astuple(estimate) for estimate in measure(these).estimates.values()]

    assert len(found(1)) == 5
    assert np.allclose(found(1), found(64), rtol=1e-5)
    assert np.allclose(found(7), found(64), rtol=1e-5)


# ------------------------------------------------------------------ weights and intervals


def test_the_first_weights_are_equal_and_all_rows_sum_to_one() -> None:
    weights = bootstrap_weights(10, np.random.default_rng(0))
    assert weights.shape == (REPEATS + 1, 10)
    assert weights[0].tolist() == [0.1] * 10
    assert np.allclose(weights.sum(axis=1), 1)
    assert (weights > 0).all()


def test_equal_weights_give_the_plain_distances() -> None:
    a, b = features(80), features(60, 0.4, seed=1)
    equal = [np.full((1, len(some)), 1 / len(some)) for some in (a, b)]
    assert weighted_fids(a, b, *equal)[0] == pytest.approx(fid(a, b), rel=1e-6)
    assert weighted_kids(a, b, *equal)[0] == kid(a, b)


def test_an_image_without_weight_does_not_count() -> None:
    a, b = features(80), features(60, 0.4, seed=1)
    of_a, of_b = np.full((1, 80), 1 / 79), np.full((1, 60), 1 / 60)
    of_a[0, 7] = 0
    rest = np.delete(a, 7, axis=0)
    assert weighted_fids(a, b, of_a, of_b)[0] == pytest.approx(fid(rest, b), rel=1e-6)
    assert weighted_kids(a, b, of_a, of_b)[0] == pytest.approx(kid(rest, b), rel=1e-9)


def test_an_interval_ends_where_the_measure_does() -> None:
    wide = around(0.1, np.array([-1.0, 1.0]), (3, 3), least=0.0)
    assert (wide.low, wide.value) == (0.0, 0.1)
    assert wide.high == pytest.approx(0.1 + 1.96 * np.sqrt(2), rel=1e-3)


def test_a_share_of_all_or_none_still_has_an_interval() -> None:
    everything, nothing = share(np.ones(20, dtype=bool), (20, 9)), share(np.zeros(20, dtype=bool), (20, 9))
    assert (everything.value, everything.high) == (1.0, 1.0)
    assert everything.low == pytest.approx(1 / (1 + 1.96**2 / 20), rel=1e-3)
    assert nothing.high == pytest.approx(1 - everything.low)
