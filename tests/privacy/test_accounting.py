"""Epsilon against formulas and a published table; calibration that meets its target and wastes nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache

import dp_accounting as dpa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from privimage.errors import LedgerBroken, PrivacyRefused
from privimage.privacy.accounting import (
    calibrate_noise_multiplier,
    epsilon_of,
    event_from_json,
    event_in_words,
    event_to_json,
)

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
    assert exact - 1e-9 <= found <= 1.002 * exact + 1e-4


def test_gaussians_compose_like_one_with_their_joint_noise() -> None:
    events = [dpa.GaussianDpEvent(3.0), dpa.GaussianDpEvent(4.0), dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(10.0), 9)]
    joint = (1 / 3.0**2 + 1 / 4.0**2 + 9 / 10.0**2) ** -0.5
    assert epsilon_of(events, DELTA) == pytest.approx(exact_gaussian_epsilon(joint, DELTA), rel=2e-3)


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
        ([50.0], dp_sgd(13.846), 0.914),
    ],
)
def test_epsilon_of_query_and_dp_sgd_is_the_known_value(prior: list[float], step: dpa.DpEvent, expected: float) -> None:
    assert epsilon_of([*map(dpa.GaussianDpEvent, prior), step], DELTA) == pytest.approx(expected, rel=2e-3)


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
EVENTS = GAUSSIANS | SAMPLED | st.builds(dpa.SelfComposedDpEvent, GAUSSIANS | SAMPLED, st.integers(1, 10**7))


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_an_event_survives_json_to_the_last_digit(event: dpa.DpEvent) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


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


def test_planning_and_accounting_load_neither_torch_nor_prefect() -> None:
    program = """
import sys
import privimage.privacy.accounting, privimage.privacy.mechanisms, privimage.privacy.ledger
import privimage.runner, privimage.plan
print(*sorted({"torch", "prefect", "opacus"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
