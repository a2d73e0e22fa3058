"""The second accountant: its certified interval holds the first one's answer, and shows a forgotten release."""

from __future__ import annotations

import math
import tracemalloc

import dp_accounting as dpa
import pytest
from scipy.stats import binom

from privimage.errors import PrivacyRefused
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.crosscheck import prv_interval

pytestmark = pytest.mark.slow

DELTA = 1e-5
LARGE = {"sample_rate": 4096 / 50_000, "num_steps": 1950}
SMALL = {"sample_rate": 64 / 1000, "num_steps": 300}


def dp_sgd(noise_multiplier: float, sample_rate: float, num_steps: int) -> dpa.DpEvent:
    return dpa.SelfComposedDpEvent(
        dpa.PoissonSampledDpEvent(sample_rate, dpa.GaussianDpEvent(noise_multiplier)), num_steps
    )


def capped(cap: int, num_steps: int = 1000, noise_multiplier: float = 12.7) -> dpa.DpEvent:
    step = dpa.TruncatedSubsampledGaussianDpEvent(
        dataset_size=50_000,
        sampling_probability=4096 / 50_000,
        truncated_batch_size=cap,
        noise_multiplier=noise_multiplier,
    )
    return dpa.SelfComposedDpEvent(step, num_steps)


@pytest.mark.parametrize(
    ("epsilon", "query", "noise_multiplier", "setting"),
    [
        (0.1, 500.0, 111.48405, LARGE),
        (0.1, 500.0, 34.24060, SMALL),
        (0.3, 100.0, 40.95310, LARGE),
        (0.3, 100.0, 12.64373, SMALL),
        (1.0, 50.0, 13.58644, LARGE),
        (1.0, 50.0, 4.29490, SMALL),
        (3.0, 50.0, 5.11335, LARGE),
        (3.0, 50.0, 1.76824, SMALL),
        (10.0, 50.0, 1.95537, LARGE),
        (10.0, 50.0, 0.87116, SMALL),
        (20.0, 50.0, 1.24750, LARGE),
        (20.0, 50.0, 0.64260, SMALL),
    ],
)
def test_epsilon_is_not_below_the_certified_bound_and_at_most_a_thousandth_above(
    epsilon: float, query: float, noise_multiplier: float, setting: dict[str, float]
) -> None:
    events = [dpa.GaussianDpEvent(query), dp_sgd(noise_multiplier, setting["sample_rate"], int(setting["num_steps"]))]
    lower, upper = prv_interval(events, DELTA)
    found = epsilon_of(events, DELTA)
    assert found == pytest.approx(epsilon, rel=2e-4)
    assert lower <= found <= 1.001 * lower
    assert found <= upper <= 1.001 * found


def test_many_steps_widen_the_interval_rather_than_take_more_than_a_gigabyte() -> None:
    events = [dpa.GaussianDpEvent(500.0), dp_sgd(12.35945, 4e-4, 1_000_000)]
    tracemalloc.start()
    try:
        lower, upper = prv_interval(events, DELTA)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lower <= 0.1 <= upper
    assert peak < 1e9


@pytest.mark.parametrize(
    "events",
    [
        [dpa.GaussianDpEvent(5.0)],
        [dpa.PoissonSampledDpEvent(0.2, dpa.GaussianDpEvent(1.5))],
        [dpa.GaussianDpEvent(8.0), dp_sgd(2.0, 0.15, 120), dp_sgd(5.0, 0.5, 20)],
        [dp_sgd(1.3678, 0.001, 100_000)],
    ],
)
def test_epsilon_lies_in_the_certified_interval(events: list[dpa.DpEvent]) -> None:
    lower, upper = prv_interval(events, DELTA)
    assert lower <= epsilon_of(events, DELTA) <= upper
    assert upper - lower <= 0.005 * lower


def test_one_gaussian_s_interval_holds_the_exact_value() -> None:
    """Balle and Wang (2018): a noise multiplier of 3.730632 costs epsilon 1 at delta 1e-5."""
    lower, upper = prv_interval([dpa.GaussianDpEvent(3.730632)], DELTA)
    assert lower <= 1.0 <= upper


def test_a_delta_that_costs_nothing_has_an_interval_at_zero() -> None:
    assert prv_interval([dpa.GaussianDpEvent(50.0)], 0.1) == (0.0, 0.0)


def test_a_forgotten_release_falls_below_the_interval() -> None:
    query, step = dpa.GaussianDpEvent(10.0), dp_sgd(4.0, 0.1, 100)
    lower, _ = prv_interval([query, step], DELTA)
    assert epsilon_of([step], DELTA) < lower
    assert epsilon_of([query, dp_sgd(4.0, 0.1, 99)], DELTA) < lower


def test_a_cap_that_is_hardly_ever_reached_leaves_the_interval_valid() -> None:
    uncut = prv_interval([dp_sgd(12.7, 4096 / 50_000, 1000)], DELTA)
    for cap in (4500, 4600):
        lower, upper = prv_interval([capped(cap)], DELTA)
        assert lower <= epsilon_of([capped(cap)], DELTA) <= upper
        assert lower <= uncut[0] and upper >= uncut[1]
    # A batch of 4500 is exceeded in 4e-8 of all runs: that is 1.3 % of delta, and of epsilon 0.1 %.
    lower, upper = prv_interval([capped(4500)], DELTA)
    assert lower < 0.9995 * uncut[0] and upper > 1.0005 * uncut[1]
    assert prv_interval([capped(50_000)], DELTA) == uncut


def test_the_interval_of_a_capped_batch_is_wider_by_what_the_cut_runs_can_do() -> None:
    lower, upper = prv_interval([capped(4500)], DELTA)
    slack = 1000 * float(binom.sf(4500, 50_000, 4096 / 50_000)) * (1 + math.exp(epsilon_of([capped(4500)], DELTA)))
    assert slack > 1e-3 * DELTA
    assert lower <= epsilon_of([dp_sgd(12.7, 4096 / 50_000, 1000)], DELTA + slack)
    assert upper >= epsilon_of([dp_sgd(12.7, 4096 / 50_000, 1000)], DELTA - slack)


def test_batches_that_are_cut_often_have_no_interval_and_the_reason_is_said() -> None:
    with pytest.raises(
        PrivacyRefused, match=r"does not know batches with a cap.*higher generator\.finetune\.largest_batch_size"
    ):
        prv_interval([dpa.GaussianDpEvent(50.0), capped(4400)], DELTA)


def test_what_it_cannot_certify_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match="LaplaceDpEvent"):
        prv_interval([dpa.LaplaceDpEvent(1.0)], DELTA)
    with pytest.raises(PrivacyRefused, match="certifies no interval above 200"):
        prv_interval([dpa.GaussianDpEvent(1e-3)], DELTA)
