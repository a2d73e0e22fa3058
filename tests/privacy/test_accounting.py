"""Epsilon against formulas and a published table; calibration that meets its target and wastes nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from functools import cache, partial

import dp_accounting as dpa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from privimage.config.bounds import LARGEST_EPSILON, SMALLEST_DELTA, SMALLEST_EPSILON
from privimage.errors import ConfigError, LedgerBroken, PrivacyRefused
from privimage.privacy import numerics
from privimage.privacy.accounting import (
    calibrate_noise_multiplier,
    delta_of_course,
    epsilon_of,
    epsilon_of_plan,
    event_from_json,
    event_in_words,
    event_shape,
    event_to_json,
    is_accountable,
    lost_attempts,
)
from privimage.privacy.crosscheck import prv_interval
from privimage.privacy.ledger import check_grant
from privimage.privacy.renyi import renyi_epsilon

DELTA = 1e-5
QUERY = dpa.GaussianDpEvent(50.0)


def dp_sgd(noise_multiplier: float, sample_rate: float = 1 / 13, num_steps: int = 1950) -> dpa.DpEvent:
    return dpa.SelfComposedDpEvent(
        dpa.PoissonSampledDpEvent(sample_rate, dpa.GaussianDpEvent(noise_multiplier)), num_steps
    )


def exact_gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang (2018), Theorem 8, solved for epsilon."""

    def excess(epsilon: float) -> float:
        half, slope = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return float(norm.cdf(half - slope) - math.exp(epsilon) * norm.cdf(-half - slope)) - delta

    return float(brentq(excess, 1e-9, 200.0, xtol=1e-12))


@cache
def calibrated(with_query: bool) -> float:
    prior = [QUERY] if with_query else []
    return calibrate_noise_multiplier(dp_sgd, epsilon=1.0, delta=DELTA, prior=prior)


@pytest.mark.parametrize("noise_multiplier", [0.7, 2.0, 15.0, 50.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_one_gaussian_costs_what_the_exact_formula_says_and_never_less(noise_multiplier: float, delta: float) -> None:
    exact = exact_gaussian_epsilon(noise_multiplier, delta)
    found = epsilon_of([dpa.GaussianDpEvent(noise_multiplier)], delta)
    assert exact * (1 - 1e-9) + numerics.EPSILON <= found <= 1.0001 * exact + numerics.EPSILON


def test_gaussians_compose_like_one_with_their_joint_noise() -> None:
    events = [dpa.GaussianDpEvent(3.0), dpa.GaussianDpEvent(4.0), dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(10.0), 9)]
    joint = (1 / 3.0**2 + 1 / 4.0**2 + 9 / 10.0**2) ** -0.5
    exact = exact_gaussian_epsilon(joint, DELTA)
    assert exact * (1 - 1e-9) <= epsilon_of(events, DELTA) <= 1.0001 * exact


@pytest.mark.parametrize(
    ("noise_multiplier", "epsilon"), [(484.0, 0.0046), (50.0, 0.059), (3.730632, 1.0), (0.896, 5.0)]
)
def test_one_gaussian_costs_the_published_value(noise_multiplier: float, epsilon: float) -> None:
    """The first is what PRIVIMAGE's query at its stated "epsilon 0.01" costs; the third is Balle and Wang's sigma at 1."""
    assert epsilon_of([dpa.GaussianDpEvent(noise_multiplier)], DELTA) == pytest.approx(epsilon, rel=1.2e-2)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_the_analytic_gaussian_mechanism_is_what_calibration_finds(epsilon: float, delta: float) -> None:
    """Balle and Wang (2018), Theorem 8, solved for the noise."""

    def excess(noise_multiplier: float) -> float:
        half, slope = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return float(norm.cdf(half - slope) - math.exp(epsilon) * norm.cdf(-half - slope)) - delta

    exact = float(brentq(excess, 0.05, 1e4, xtol=1e-12))
    found = calibrate_noise_multiplier(dpa.GaussianDpEvent, epsilon=epsilon, delta=delta, prior=[])
    assert exact * (1 - 1e-9) <= found <= 1.0002 * exact


@pytest.mark.parametrize(("rate", "noise_multiplier", "delta"), [(0.1, 1.0, 1e-5), (0.3, 2.0, 1e-3), (0.01, 0.7, 1e-6)])
def test_one_sampled_gaussian_costs_what_the_divergence_of_its_two_mixtures_says(
    rate: float, noise_multiplier: float, delta: float
) -> None:
    """Both directions, from normal tails: with one image more, the loss grows with the outcome."""
    epsilon = epsilon_of([dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(noise_multiplier))], delta)

    def gone(epsilon: float) -> float:
        where = noise_multiplier**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
        empty, full = norm.sf(where / noise_multiplier), norm.sf((where - 1) / noise_multiplier)
        return float((1 - rate) * empty + rate * full - math.exp(epsilon) * empty)

    def added(epsilon: float) -> float:
        if math.exp(-epsilon) <= 1 - rate:
            return 0.0
        where = noise_multiplier**2 * math.log((math.exp(-epsilon) - 1 + rate) / rate) + 0.5
        empty, full = norm.cdf(where / noise_multiplier), norm.cdf((where - 1) / noise_multiplier)
        return float(empty - math.exp(epsilon) * ((1 - rate) * empty + rate * full))

    exact = float(brentq(lambda epsilon: max(gone(epsilon), added(epsilon)) - delta, 1e-6, 50.0, xtol=1e-12))
    assert exact * (1 - 1e-9) <= epsilon <= 1.0001 * exact


@pytest.mark.parametrize(
    ("prior", "step", "expected"),
    [
        ([], dp_sgd(12.727), 1.0),
        ([50.0], dp_sgd(12.762), 1.0),
        ([20.0], dp_sgd(12.952), 1.0),
        ([50.0], dp_sgd(1.852), 10.0),
        ([5.3], dp_sgd(1.859), 10.0),
        ([50.0], dp_sgd(13.332, 0.25, 200), 1.0),
        ([50.0], dp_sgd(14.211, 1 / 7, 700), 1.0),
        ([50.0], dp_sgd(2.040, 1 / 7, 700), 10.0),
        ([50.0], dp_sgd(1.935, 0.25, 200), 10.0),
        ([50.0], dp_sgd(26.506, 0.25, 800), 1.0),
        ([50.0], dp_sgd(3.625, 0.25, 800), 10.0),
        ([50.0], dp_sgd(13.846), 0.914),
    ],
)
def test_epsilon_of_query_and_dp_sgd_is_the_known_value(prior: list[float], step: dpa.DpEvent, expected: float) -> None:
    assert epsilon_of([*map(dpa.GaussianDpEvent, prior), step], DELTA) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("query", "rate", "num_steps", "delta", "epsilon", "renyi_noise", "noise"),
    [
        (484.0, 1 / 3, 150, 1e-5, 1.0, 16.64, 15.34),
        (484.0, 1 / 3, 150, 1e-5, 10.0, 2.32, 2.19),
        (50.0, 1 / 11, 1650, 2.07e-6, 1.0, 16.31, 15.20),
        (50.0, 1 / 11, 1650, 2.07e-6, 10.0, 2.205, 2.096),
        (50.0, 1 / 14, 2100, 1.67e-6, 1.0, 14.61, 13.64),
        (500.0, 1 / 36, 3600, 5.80e-7, 1.0, 7.80, 7.34),
        (500.0, 1 / 36, 3600, 5.80e-7, 10.0, 1.20, 1.154),
    ],
)
def test_published_settings_cost_what_they_were_published_for(
    query: float, rate: float, num_steps: int, delta: float, epsilon: float, renyi_noise: float, noise: float
) -> None:
    """PRIVIMAGE (first two) and DPImageBench: the noise by their Rényi accountant, and by a tight one, to 3 digits."""
    prior = dpa.GaussianDpEvent(query)
    assert epsilon_of([prior, dp_sgd(noise, rate, num_steps)], delta) == pytest.approx(epsilon, rel=8e-3)
    with_more_noise = [prior, dp_sgd(renyi_noise, rate, num_steps)]
    assert renyi_epsilon(with_more_noise, delta) == pytest.approx(epsilon, rel=2e-2)
    assert epsilon_of(with_more_noise, delta) < 0.98 * epsilon


def capped(noise_multiplier: float, cap: int) -> dpa.DpEvent:
    """1000 steps of mean 4096 of 50,000 images."""
    step = dpa.TruncatedSubsampledGaussianDpEvent(
        dataset_size=50_000,
        sampling_probability=4096 / 50_000,
        truncated_batch_size=cap,
        noise_multiplier=noise_multiplier,
    )
    return dpa.SelfComposedDpEvent(step, 1000)


@pytest.mark.parametrize(("cap", "expected"), [(4200, 0.99363), (4400, 0.745687), (4600, 0.745684), (50_000, 0.745684)])
def test_a_cap_on_the_batch_costs_what_is_known(cap: int, expected: float) -> None:
    assert epsilon_of([capped(12.7, cap)], DELTA) - numerics.EPSILON == pytest.approx(expected, rel=2e-5)


def test_calibration_pays_for_the_cap() -> None:
    for cap in (4200, 4400):
        noise = calibrate_noise_multiplier(partial(capped, cap=cap), epsilon=1.0, delta=DELTA, prior=[QUERY])
        assert epsilon_of([QUERY, capped(noise, cap)], DELTA) <= 1.0
        assert epsilon_of([QUERY, capped(noise * (1 - 1e-4), cap)], DELTA) > 1.0


@pytest.mark.parametrize(
    "event",
    [
        dpa.GaussianDpEvent(1e-12),
        dpa.GaussianDpEvent(0.02),
        dp_sgd(1e-3),
        dp_sgd(0.07),
        dp_sgd(0.1, 1e-6, 10),
        dp_sgd(0.5, 0.5, 10**6),
        dp_sgd(1e6),
        capped(0.1, 4200),
    ],
)
def test_no_noise_however_small_or_large_takes_long(event: dpa.DpEvent) -> None:
    began = time.process_time()
    assert epsilon_of([event], DELTA) >= 0
    assert time.process_time() - began < 5


def test_no_noise_at_all_costs_an_infinite_epsilon() -> None:
    assert epsilon_of([dpa.GaussianDpEvent(0.0)], DELTA) == math.inf
    assert epsilon_of([QUERY, dp_sgd(0.0)], DELTA) == math.inf


@pytest.mark.parametrize(("epsilon", "seconds"), [(1.0, 2.0), (10.0, 8.0)])
def test_calibration_is_quick_and_wastes_less_than_a_ten_thousandth(epsilon: float, seconds: float) -> None:
    def event(noise_multiplier: float) -> dpa.DpEvent:
        return dp_sgd(noise_multiplier, 4096 / 50_000, 2000 + round(epsilon))

    began = time.process_time()
    noise = calibrate_noise_multiplier(event, epsilon=epsilon, delta=DELTA, prior=[QUERY])
    assert time.process_time() - began < seconds
    assert epsilon_of([QUERY, event(noise)], DELTA) <= epsilon < epsilon_of([QUERY, event(noise * (1 - 1e-4))], DELTA)


def test_the_relation_is_zero_out_not_replace_one() -> None:
    replace_one = dpa.pld.PLDAccountant(dpa.NeighboringRelation.REPLACE_ONE).compose(QUERY).get_epsilon(DELTA)
    assert epsilon_of([QUERY], DELTA) < 0.6 * replace_one


def test_nothing_costs_nothing_and_order_costs_nothing() -> None:
    assert epsilon_of([], DELTA) == 0.0
    events = [QUERY, dp_sgd(3.0, 0.1, 20)]
    assert epsilon_of(events, DELTA) == epsilon_of(events[::-1], DELTA)


def test_more_steps_and_a_smaller_delta_cost_more() -> None:
    base = epsilon_of([dp_sgd(3.0, 0.1, 20)], DELTA)
    assert epsilon_of([dp_sgd(3.0, 0.1, 25)], DELTA) > base
    assert epsilon_of([dp_sgd(3.0, 0.1, 20)], DELTA / 10) > base


def test_calibrated_noise_meets_the_target_and_a_thousandth_less_does_not() -> None:
    noise_multiplier = calibrated(with_query=True)
    assert epsilon_of([QUERY, dp_sgd(noise_multiplier)], DELTA) <= 1.0
    assert epsilon_of([QUERY, dp_sgd(0.999 * noise_multiplier)], DELTA) > 1.0
    assert noise_multiplier == pytest.approx(12.762, rel=2e-3)


def test_calibrated_noise_meets_a_target_of_few_steps_too() -> None:
    def few(noise_multiplier: float) -> dpa.DpEvent:
        return dp_sgd(noise_multiplier, 0.3, 10)

    noise_multiplier = calibrate_noise_multiplier(few, epsilon=1.0, delta=1e-3, prior=[dpa.GaussianDpEvent(6.0)])
    assert epsilon_of([dpa.GaussianDpEvent(6.0), few(noise_multiplier)], 1e-3) <= 1.0
    assert epsilon_of([dpa.GaussianDpEvent(6.0), few(0.999 * noise_multiplier)], 1e-3) > 1.0


def test_forgetting_the_query_shows() -> None:
    forgot = calibrated(with_query=False)
    assert forgot < calibrated(with_query=True)
    assert epsilon_of([QUERY, dp_sgd(forgot)], DELTA) > 1.001


def test_a_query_that_eats_the_whole_budget_is_refused_with_advice() -> None:
    with pytest.raises(PrivacyRefused, match=r"nothing is left for fine-tuning: raise privacy\.query_error") as caught:
        calibrate_noise_multiplier(dp_sgd, epsilon=1.0, delta=DELTA, prior=[dpa.GaussianDpEvent(2.0)])
    assert caught.value.exit_code == 3


GAUSSIANS = st.builds(dpa.GaussianDpEvent, st.floats(1e-3, 1e6))
SAMPLED = st.builds(dpa.PoissonSampledDpEvent, st.floats(0, 1), GAUSSIANS)
CAPPED = st.builds(
    dpa.TruncatedSubsampledGaussianDpEvent,
    dataset_size=st.integers(1, 10**9),
    sampling_probability=st.floats(0, 1),
    truncated_batch_size=st.integers(1, 10**9),
    noise_multiplier=st.floats(1e-3, 1e6),
)
SINGLE = GAUSSIANS | SAMPLED | CAPPED
EVENTS = SINGLE | st.builds(dpa.SelfComposedDpEvent, SINGLE, st.integers(1, 10**7))


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_an_event_survives_json_to_the_last_digit(event: dpa.DpEvent) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@given(EVENTS)
@settings(max_examples=30, deadline=None)
def test_the_shape_of_an_event_is_all_but_its_noise(event: dpa.DpEvent) -> None:
    def changed(data: object, names: set[str]) -> object:
        if not isinstance(data, dict):
            return data
        return {
            name: value * 2 if name in names and isinstance(value, int | float) else changed(value, names)
            for name, value in data.items()
        }

    data = event_to_json(event)
    assert event_shape(event_from_json(changed(data, {"noise_multiplier"}))) == event_shape(event)
    for name in ("count", "truncated_batch_size", "dataset_size"):
        other = event_from_json(changed(data, {name}))
        assert (event_shape(other) == event_shape(event)) == (other == event)


def test_an_event_without_a_place_in_the_format_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match="LaplaceDpEvent"):
        event_to_json(dpa.LaplaceDpEvent(1.0))
    with pytest.raises(PrivacyRefused, match="LaplaceDpEvent"):
        epsilon_of([dpa.LaplaceDpEvent(1.0)], DELTA)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"event": "LaplaceDpEvent", "noise_multiplier": 1.0}, "'LaplaceDpEvent' that this version does not know"),
        ({"event": "GaussianDpEvent"}, "cannot be read"),
        ({"event": "GaussianDpEvent", "noise_multiplier": "much"}, "cannot be read"),
        ({"event": "PoissonSampledDpEvent", "sampling_probability": 0.1}, "cannot be read"),
        ({"event": "TruncatedSubsampledGaussianDpEvent", "noise_multiplier": 1.0}, "cannot be read"),
        ({}, "cannot be read"),
        ("GaussianDpEvent", "cannot be read"),
    ],
)
def test_a_mechanism_that_cannot_be_read_is_refused_never_skipped(data: object, message: str) -> None:
    with pytest.raises(LedgerBroken, match=message):
        event_from_json(data)


def test_an_event_is_told_in_words() -> None:
    assert event_in_words(dp_sgd(2.5, 0.1, 7)) == (
        "7 steps of: Gaussian noise, 2.5 times the sensitivity, on Poisson samples of rate 0.1"
    )
    assert event_in_words(capped(12.7, 4400)) == (
        "1000 steps of: Gaussian noise, 12.7 times the sensitivity, on Poisson samples of rate 0.08192, cut at random to "
        "at most 4400 of 50000 images"
    )


def test_planning_and_accounting_load_neither_torch_nor_prefect() -> None:
    program = """
import sys
import privimage.privacy.accounting, privimage.privacy.mechanisms, privimage.privacy.ledger
import privimage.running.runner, privimage.running.plan
print(*sorted({"torch", "prefect", "opacus"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


@pytest.mark.parametrize("epsilon", [SMALLEST_EPSILON, 1.0, LARGEST_EPSILON])
@pytest.mark.parametrize("delta", [SMALLEST_DELTA, 1e-4])
def test_what_a_configuration_and_a_grant_may_state_can_be_accounted(epsilon: float, delta: float) -> None:
    assert is_accountable(epsilon, delta)
    check_grant(epsilon=epsilon, delta=delta, num_images=1000)


@pytest.mark.parametrize("event", [dp_sgd(2.0, 0.01, 2000), dpa.GaussianDpEvent(5.0)])
def test_at_the_smallest_delta_both_accountants_still_agree_to_a_thousandth(event: dpa.DpEvent) -> None:
    """At 1e-12 they are 1 % and more apart, whichever is right: rounding of float64 is all that is left."""
    low, high = prv_interval([event], SMALLEST_DELTA)
    assert 0.999 * low <= epsilon_of([event], SMALLEST_DELTA) <= 1.001 * high


@pytest.mark.parametrize("delta", [1e-15, 1e-30, 1e-100])
def test_a_delta_below_all_bounds_has_a_looser_epsilon_and_no_overflow(delta: float) -> None:
    event = dp_sgd(2.0, 0.01, 100)
    assert epsilon_of([event], SMALLEST_DELTA) < epsilon_of([event], delta)
    assert epsilon_of([event], delta) <= renyi_epsilon([event], delta * (1 - numerics.DELTA_SHARE)) + numerics.EPSILON


def test_what_is_within_the_bounds_is_tried_all_the_same_before_it_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privimage.privacy.ledger.is_accountable", lambda epsilon, delta: False)
    with pytest.raises(ConfigError, match="No run could be accounted with epsilon 1 at delta 1e-06"):
        check_grant(epsilon=1.0, delta=1e-6, num_images=1000)


def test_the_shares_of_delta_of_all_courses_add_up_to_delta() -> None:
    shares = [delta_of_course(DELTA, lost) for lost in range(60)]
    assert sum(shares) == pytest.approx(DELTA, rel=1e-12)
    assert shares[0] > 0.999 * DELTA and all(share > 0 for share in shares)


def test_a_plan_in_which_an_attempt_was_lost_is_accounted_at_the_share_of_its_course() -> None:
    """That it was lost may have depended on its result: the joint bound at the whole of delta is then none."""
    again = epsilon_of_plan([QUERY, QUERY, dp_sgd(4.0)], [], DELTA, lost=1)
    assert (
        again
        == epsilon_of([QUERY, QUERY, dp_sgd(4.0)], delta_of_course(DELTA, 1))
        > epsilon_of_plan([QUERY, QUERY, dp_sgd(4.0)], [], DELTA)
    )
    before = epsilon_of_plan([dp_sgd(4.0)], [QUERY, QUERY], DELTA, lost_before=1)
    assert before > epsilon_of_plan([dp_sgd(4.0)], [QUERY, QUERY], DELTA)
    assert lost_attempts(["query", "query", "finetune"]) == 1 and lost_attempts(["query", "finetune"]) == 0
