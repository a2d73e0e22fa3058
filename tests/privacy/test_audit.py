"""Lower bounds on epsilon: by hand, on mechanisms whose epsilon is known, and against faults."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from privimage.errors import ConfigError
from privimage.privacy import audit as audit_module
from privimage.privacy.accounting import deltas_of, epsilon_of
from privimage.privacy.audit import (
    CONFIDENCE,
    Audit,
    Bound,
    CanaryScores,
    audit,
    clopper_pearson,
    f_dp,
    f_dp_refutes,
    gaussian_fit,
    one_run,
    one_run_p_value,
    trade_off,
)
from privimage.privacy.mechanisms import DPSGDMechanism

DELTA = 1e-5
GAUSSIAN = DPSGDMechanism(
    num_images=400,
    expected_batch_size=400,
    num_steps=1,
    restart_allowance=0,
    max_grad_norm=1.0,
    noise_multiplier=0.5,
)
SAMPLED = replace(GAUSSIAN, expected_batch_size=100, num_steps=20, noise_multiplier=0.8)


def observed(mechanism: DPSGDMechanism, generator: np.random.Generator, *, noise: float = 1.0) -> CanaryScores:
    """Exactly what orthogonal canaries give; `noise` is the share of the noise that is really added."""
    inserted = generator.random(mechanism.num_images) < 0.5
    shape = (mechanism.num_steps, mechanism.num_images)
    released = generator.normal(size=shape) * noise * mechanism.noise_multiplier
    released += inserted & (generator.random(shape) < mechanism.sample_rate)
    return of_steps(inserted, released)


def of_steps(inserted: np.ndarray, released: np.ndarray) -> CanaryScores:
    return CanaryScores(inserted=inserted, sums=released.sum(0), squares=(released**2).sum(0), steps=len(released))


# ------------------------------------------------------------------ by hand


def test_the_one_run_p_value_is_that_of_the_paper() -> None:
    assert one_run_p_value(100, 100, 75, math.log(3), 0.0) == pytest.approx(0.553, abs=5e-4)
    for num, guesses, right, epsilon, delta in [
        (1000, 100, 90, 1.0, 1e-4),
        (50, 50, 50, 2.0, 1e-3),
        (9, 8, 0, 1, 0.01),
    ]:
        honest, so_far, largest = 1 / (1 + math.exp(-epsilon)), 0.0, 0.0
        for fewer in range(1, right + 1):
            so_far += binom.pmf(right - fewer, guesses, honest)
            largest = max(largest, so_far / fewer)
        plain = min(1.0, binom.sf(right - 1, guesses, honest) + 2 * num * delta * largest)
        assert one_run_p_value(num, guesses, right, epsilon, delta) == pytest.approx(plain, rel=1e-9)


def test_told_apart_without_an_error_the_bounds_are_what_the_numbers_of_canaries_allow() -> None:
    inserted = np.arange(400) % 4 < 2
    scores = of_steps(inserted, np.where(inserted, 1.0, 0.0)[None] + np.arange(400)[None] * 1e-9)
    right = 0.025 ** (1 / 100)  # of 100 in each half of the halves, by Clopper and Pearson
    assert clopper_pearson(scores, DELTA).epsilon == pytest.approx(math.log((right - DELTA) / (1 - right)), rel=1e-6)
    everything = [e for e in np.arange(0, 9, 1e-3) if one_run_p_value(400, 400, 400, e, DELTA) < 0.05 / 4]
    assert one_run(scores, DELTA).epsilon == pytest.approx(everything[-1], abs=2e-3)


def test_scores_that_say_nothing_show_nothing() -> None:
    generator = np.random.default_rng(0)
    scores = of_steps(generator.random(400) < 0.5, generator.normal(size=(1, 400)))
    assert [bound.epsilon for bound in audit(scores, GAUSSIAN, DELTA).bounds] == [0.0, 0.0, 0.0, 0.0]


def test_the_trade_off_curve_is_the_gaussian_one_in_closed_form() -> None:
    curve = trade_off(GAUSSIAN)
    for x in (1e-3, 0.1, 0.3, 0.5, 0.9, 0.99, 0.9999):
        exact = ndtr(ndtri(x) - 1 / GAUSSIAN.noise_multiplier)
        assert exact - 5e-3 <= curve(x) <= exact + 1e-9, "never above: that would refute what is true"
    assert curve(0.0) == 0.0
    assert curve(1.0) == pytest.approx(1.0, abs=1e-4)


def test_delta_at_epsilon_is_the_inverse_of_epsilon_at_delta() -> None:
    for mechanism in (GAUSSIAN, SAMPLED):
        epsilon = epsilon_of([mechanism.event], DELTA)
        assert deltas_of([mechanism.event], [epsilon]) == pytest.approx([DELTA], rel=0.02)
    assert deltas_of([replace(GAUSSIAN, noise_multiplier=1e-4).event], [1.0, 9.0]) == [1.0, 1.0]


# ------------------------------------------------------------------ the share of false alarms


def test_the_one_run_bound_holds_and_is_sharp_on_randomised_response() -> None:
    """Where it is tight: each canary's coin is told with the probability that epsilon allows."""
    generator, true = np.random.default_rng(1), 2.0
    bounds = []
    for _ in range(300):
        inserted = generator.random(400) < 0.5
        told = np.where(generator.random(400) < 1 / (1 + math.exp(-true)), inserted, ~inserted)
        bounds.append(one_run(of_steps(inserted, told[None] + generator.random((1, 400)) * 1e-3), 0.0).epsilon)
    assert np.mean(np.array(bounds) > true) <= 1 - CONFIDENCE + 0.03
    assert np.mean(bounds) > 0.6 * true


@pytest.mark.parametrize("half", [100, 10, 2])
def test_the_f_dp_test_refutes_a_true_curve_as_seldom_as_it_says(half: int) -> None:
    generator, refuted = np.random.default_rng(2), 0
    for _ in range(400):
        inserted = generator.random(200) < 0.5
        order = np.argsort(generator.normal(size=200) + 1.0 * inserted)
        right = int(inserted[order[-half:]].sum() + (~inserted[order[:half]]).sum())
        refuted += f_dp_refutes(lambda x: float(ndtr(ndtri(x) - 1.0)), 200, 2 * half, right, 0.3)
    assert refuted / 400 <= 0.3 + 0.06
    assert f_dp_refutes(lambda x: float(ndtr(ndtri(x) - 0.5)), 200, 200, 170, 0.05)


@pytest.mark.parametrize("mechanism", [GAUSSIAN, SAMPLED])
def test_on_a_known_mechanism_no_bound_is_above_epsilon_in_twenty_audits(mechanism: DPSGDMechanism) -> None:
    generator = np.random.default_rng(3)
    audits = [audit(observed(mechanism, generator), mechanism, DELTA) for _ in range(20)]
    assert [found.alarms for found in audits] == [()] * 20
    means = np.mean([[bound.epsilon for bound in found.bounds] for found in audits], axis=0)
    assert (means > 0).all(), "they show something"
    assert means[2] > means[1] > means[0], "the more is assumed, the more is shown"


def test_the_fit_is_above_epsilon_as_seldom_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "FIT_CONFIDENCE", 0.8)
    generator, true = np.random.default_rng(4), epsilon_of([GAUSSIAN.event], DELTA)
    above = [gaussian_fit(observed(GAUSSIAN, generator), GAUSSIAN, DELTA).epsilon > true for _ in range(200)]
    assert np.mean(above) <= 0.2 + 0.06
    assert np.mean(above) > 0.01, "or it would not be sharp"


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize("mechanism", [GAUSSIAN, SAMPLED])
@pytest.mark.parametrize("noise", [0.5, 1e-9])
def test_less_noise_is_an_alarm(mechanism: DPSGDMechanism, noise: float) -> None:
    generator = np.random.default_rng(5)
    for _ in range(5):
        found = audit(observed(mechanism, generator, noise=noise), mechanism, DELTA)
        assert found.alarms
        assert found.verdict.startswith("The claim is refuted: ")
        assert all(math.isfinite(bound.epsilon) for bound in found.bounds)


def test_a_tenth_less_noise_is_an_alarm_whatever_epsilon_is() -> None:
    generator = np.random.default_rng(7)
    for noise in (0.5, 2.0, 20.0):
        mechanism = replace(SAMPLED, num_steps=50, noise_multiplier=noise)
        assert audit(observed(mechanism, generator, noise=0.9), mechanism, DELTA).alarms


def test_images_that_are_not_clipped_are_an_alarm_with_all_of_the_noise() -> None:
    scores = observed(GAUSSIAN, np.random.default_rng(8))
    longer = CanaryScores(
        inserted=scores.inserted, sums=scores.sums + scores.inserted, squares=scores.squares, steps=scores.steps
    )
    assert gaussian_fit(longer, GAUSSIAN, DELTA).epsilon > epsilon_of([GAUSSIAN.event], DELTA)


def test_more_canaries_refute_half_the_noise_without_the_heuristic_too() -> None:
    mechanism = replace(GAUSSIAN, num_images=4000, expected_batch_size=4000, noise_multiplier=1.0)
    scores = observed(mechanism, np.random.default_rng(6), noise=0.5)
    assert f_dp(scores, mechanism, DELTA).epsilon > epsilon_of([mechanism.event], DELTA)


def test_only_a_bound_above_the_claim_is_an_alarm() -> None:
    def found(epsilon: float) -> Audit:
        bound = Bound(name="some", epsilon=epsilon, confidence=0.95, assumption="none")
        return Audit(claimed=2.0, delta=DELTA, canaries=100, bounds=(bound,))

    assert not found(1.999).alarms and not found(2.0).alarms and found(2.001).alarms
    assert "no bound contradicts" in found(1.0).verdict.lower()
    assert "epsilon above 2.001" in found(2.001).verdict


# ------------------------------------------------------------------ bad input


def test_too_few_canaries_are_refused_with_the_number_that_is_needed() -> None:
    for inserted in (np.arange(99) % 2 == 0, np.arange(400) < 5, np.arange(400) >= 5):
        with pytest.raises(ConfigError, match="at least 100 canaries"):
            of_steps(inserted, np.zeros((1, len(inserted))))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    released = np.zeros((1, 400))
    released[0, 7] = bad
    with pytest.raises(ConfigError, match="not finite"):
        of_steps(np.arange(400) % 2 == 0, released)
