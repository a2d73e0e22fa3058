"""Mechanisms as data: what is accounted is what adds the noise."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting as dpa
import pytest

from privimage.errors import ConfigError
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.mechanisms import RELATION, DPSGDMechanism, HistogramQuery, query_mechanism

QUERY = HistogramQuery(num_votes=4, num_classes=10, num_categories=62, noise_multiplier=7.5)
DP_SGD = DPSGDMechanism(
    num_images=1000,
    expected_batch_size=300,
    num_steps=100,
    restart_allowance=20,
    max_grad_norm=1e-3,
    noise_multiplier=6,
)


def test_the_relation_is_zero_out() -> None:
    assert RELATION is dpa.NeighboringRelation.REPLACE_SPECIAL


def test_the_query_accounts_for_the_noise_it_adds() -> None:
    assert QUERY.sensitivity == 2.0
    assert QUERY.event == dpa.GaussianDpEvent(QUERY.noise_stddev / QUERY.sensitivity)


def test_dp_sgd_accounts_for_the_noise_the_rate_and_all_steps_that_may_run() -> None:
    assert DP_SGD.sensitivity == DP_SGD.max_grad_norm
    step = dpa.PoissonSampledDpEvent(0.3, dpa.GaussianDpEvent(DP_SGD.noise_stddev / DP_SGD.sensitivity))
    assert DP_SGD.event == dpa.SelfComposedDpEvent(step, 120)


def test_dp_sgd_with_a_cap_accounts_for_the_cap() -> None:
    mechanism = replace(DP_SGD, largest_batch_size=350)
    step = dpa.TruncatedSubsampledGaussianDpEvent(
        dataset_size=1000,
        sampling_probability=0.3,
        truncated_batch_size=350,
        noise_multiplier=DP_SGD.noise_stddev / DP_SGD.sensitivity,
    )
    assert mechanism.event == dpa.SelfComposedDpEvent(step, 120)
    assert epsilon_of([mechanism.event], 1e-5) > 1.001 * epsilon_of([DP_SGD.event], 1e-5)


@pytest.mark.parametrize("largest_batch_size", [0, 299, 1001])
def test_a_cap_below_the_mean_or_above_all_images_is_refused(largest_batch_size: int) -> None:
    with pytest.raises(ConfigError, match="between expected_batch_size = 300 and the 1000 training images"):
        replace(DP_SGD, largest_batch_size=largest_batch_size)
    for fits in (300, 1000):
        assert replace(DP_SGD, largest_batch_size=fits).largest_batch_size == fits


def test_the_sample_rate_is_exact_not_one_over_the_batches_of_an_epoch() -> None:
    assert DP_SGD.sample_rate == 300 / 1000
    assert DP_SGD.sample_rate > 1 / math.ceil(1000 / 300)


def test_query_error_is_the_noise_per_cell_as_a_share_of_the_mean_class_size() -> None:
    query = query_mechanism(
        num_votes=3, num_classes=10, num_categories=62, num_images=50_000, query_error=0.02, query_noise_multiplier=None
    )
    assert query.noise_stddev == pytest.approx(0.02 * 5000)


def test_noise_given_by_hand_is_taken_as_it_is() -> None:
    query = query_mechanism(
        num_votes=3, num_classes=10, num_categories=62, num_images=50_000, query_error=None, query_noise_multiplier=12.5
    )
    assert query.noise_multiplier == 12.5


def test_a_query_without_stated_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="query_error or query_noise_multiplier"):
        query_mechanism(
            num_votes=3,
            num_classes=10,
            num_categories=62,
            num_images=100,
            query_error=None,
            query_noise_multiplier=None,
        )


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.nan, math.inf])
def test_noise_that_is_no_positive_number_is_refused(noise_multiplier: float) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier must be positive and finite"):
        replace(QUERY, noise_multiplier=noise_multiplier)
    with pytest.raises(ConfigError, match="noise_multiplier must be positive and finite"):
        replace(DP_SGD, noise_multiplier=noise_multiplier)


@pytest.mark.parametrize("num_votes", [0, 63])
def test_votes_must_fit_the_categories(num_votes: int) -> None:
    with pytest.raises(ConfigError, match="62 categories"):
        replace(QUERY, num_votes=num_votes)


@pytest.mark.parametrize("expected_batch_size", [0, 1001])
def test_the_batch_must_fit_the_images(expected_batch_size: int) -> None:
    with pytest.raises(ConfigError, match="1000 training images"):
        replace(DP_SGD, expected_batch_size=expected_batch_size)
