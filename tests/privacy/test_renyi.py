"""Rényi bounds: exact where a formula or an integral says so, never below the tighter accountant elsewhere."""

from __future__ import annotations

import math

import dp_accounting as dpa
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import binom, norm

from privimage.errors import PrivacyRefused
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.mechanisms import RELATION
from privimage.privacy.renyi import LARGEST_ORDER, best_order, budget_of_order, renyi_divergence

DELTA = 1e-5
GRID = np.linspace(-300.0, 300.0, 60_001)


def sampled(noise_multiplier: float, rate: float) -> dpa.DpEvent:
    return dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(noise_multiplier))


def truncated(noise_multiplier: float, rate: float, cap: int, num_images: int) -> dpa.DpEvent:
    return dpa.TruncatedSubsampledGaussianDpEvent(
        dataset_size=num_images,
        sampling_probability=rate,
        truncated_batch_size=cap,
        noise_multiplier=noise_multiplier,
    )


def repeated(event: dpa.DpEvent, count: int) -> dpa.DpEvent:
    return dpa.SelfComposedDpEvent(event, count)


def log_mixture(noise_multiplier: float, *parts: tuple[float, float]) -> np.ndarray:
    """Log density on the grid of a mixture of Gaussians, each given as (weight, mean)."""
    return np.asarray(logsumexp([math.log(w) + norm.logpdf(GRID, mean, noise_multiplier) for w, mean in parts], axis=0))


def log_moment(p: np.ndarray, q: np.ndarray, order: int) -> float:
    """(order - 1) times the Rényi divergence, by summation over the grid."""
    return float(logsumexp(order * p + (1 - order) * q) + math.log(GRID[1] - GRID[0]))


def epsilon_by_order(divergence: float, order: int) -> float:
    """Canonne, Kamath and Steinke (2020), Proposition 12."""
    return divergence + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)


@pytest.mark.parametrize("order", [2, 7, 33, LARGEST_ORDER])
def test_a_gaussian_costs_the_closed_form_and_repetitions_add_up(order: int) -> None:
    assert renyi_divergence(dpa.GaussianDpEvent(3.0), order) == pytest.approx(order / 18)
    assert renyi_divergence(repeated(dpa.GaussianDpEvent(3.0), 5), order) == pytest.approx(5 * order / 18)
    assert renyi_divergence(repeated(repeated(sampled(3.0, 0.1), 5), 4), order) == pytest.approx(
        20 * renyi_divergence(sampled(3.0, 0.1), order)
    )


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(1.0, 0.1), (2.0, 0.5), (6.0, 0.08)])
@pytest.mark.parametrize("order", [2, 5, 20])
def test_a_sampled_gaussian_costs_the_integral_of_one_direction_and_covers_the_other(
    noise_multiplier: float, rate: float, order: int
) -> None:
    without, with_image = log_mixture(noise_multiplier, (1, 0)), log_mixture(noise_multiplier, (1 - rate, 0), (rate, 1))
    found = renyi_divergence(sampled(noise_multiplier, rate), order)
    assert found == pytest.approx(log_moment(with_image, without, order) / (order - 1), rel=1e-9, abs=1e-10)
    assert found >= log_moment(without, with_image, order) / (order - 1) - 1e-10


@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "cap", "num_images"),
    [(3.0, 0.1, 110, 1000), (3.0, 0.1, 130, 1000), (8.0, 0.3, 330, 1000), (2.0, 0.5, 60, 100)],
)
@pytest.mark.parametrize("order", [2, 5, 20])
def test_a_truncated_batch_costs_at_least_the_integral_for_all_pairs_it_has_to_cover(
    noise_multiplier: float, rate: float, cap: int, num_images: int, order: int
) -> None:
    """If cut: the image displaces one of the others, in a direction of its own; N(0) stands for the sum without it."""
    found = renyi_divergence(truncated(noise_multiplier, rate, cap, num_images), order)
    p_cut = float(binom.sf(cap - 1, num_images - 1, rate))
    kept = float(binom.sf(cap, num_images, rate)) * cap / num_images / p_cut
    nothing = log_mixture(noise_multiplier, (1, 0))
    uncut = log_moment(log_mixture(noise_multiplier, (1 - rate, 0), (rate, 1)), nothing, order)

    def displaced(by: float) -> np.ndarray:
        return log_mixture(noise_multiplier, (1 - kept, 0), (kept, by))

    for with_image, without_it in [(2, -2), (2, 0), (2, 1), (0, -1), (-2, -1)]:
        cut = log_moment(displaced(with_image), displaced(without_it), order)
        assert found >= np.logaddexp(math.log(p_cut) + cut, math.log1p(-p_cut) + uncut) / (order - 1) - 1e-10


@given(
    st.floats(1.0, 30.0),
    st.integers(1, 400),
    st.integers(0, 600),
    st.integers(400, 5000),
    st.sampled_from([2, 3, 8, 40, 300]),
)
@settings(max_examples=60, deadline=None)
def test_truncation_never_makes_a_step_cheaper_and_a_higher_cap_never_dearer(
    noise_multiplier: float, mean: int, room: int, num_images: int, order: int
) -> None:
    cap = min(mean + room, num_images)
    found = renyi_divergence(truncated(noise_multiplier, mean / num_images, cap, num_images), order)
    higher = renyi_divergence(
        truncated(noise_multiplier, mean / num_images, min(cap + 50, num_images), num_images), order
    )
    uncut = renyi_divergence(sampled(noise_multiplier, mean / num_images), order)
    assert uncut <= higher <= found * (1 + 1e-9) + 1e-12


def test_a_cap_that_is_hardly_ever_reached_costs_hardly_anything() -> None:
    uncut = renyi_divergence(sampled(12.7, 4096 / 50_000), 18)
    assert renyi_divergence(truncated(12.7, 4096 / 50_000, 4600, 50_000), 18) == pytest.approx(uncut, rel=1e-9)
    assert renyi_divergence(truncated(12.7, 4096 / 50_000, 4400, 50_000), 18) < 1.001 * uncut
    assert renyi_divergence(truncated(12.7, 4096 / 50_000, 50_000, 50_000), 18) == uncut


def test_a_cap_too_rare_for_a_float_is_bounded_not_forgotten() -> None:
    """At order 1024 and little noise, even a probability of 1e-400 weighs more than the uncut case."""
    assert binom.sf(1999, 9999, 0.01) == 0.0
    small = truncated(0.3, 0.01, 2000, 10_000)
    assert renyi_divergence(small, LARGEST_ORDER) > 1.5 * renyi_divergence(sampled(0.3, 0.01), LARGEST_ORDER)


@given(st.floats(0.5, 30.0), st.floats(0.001, 0.9), st.integers(2, 200))
@settings(max_examples=60, deadline=None)
def test_less_noise_a_higher_rate_and_a_higher_order_cost_more(noise: float, rate: float, order: int) -> None:
    found = renyi_divergence(sampled(noise, rate), order)
    assert renyi_divergence(sampled(0.9 * noise, rate), order) > found
    assert renyi_divergence(sampled(noise, 1.1 * rate), order) > found
    assert renyi_divergence(sampled(noise, rate), order + 1) > found * (1 - 1e-9)


@pytest.mark.parametrize("order", [2, 5, 18, 125])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 10.0])
def test_a_budget_is_what_the_conversion_turns_into_epsilon(epsilon: float, order: int) -> None:
    budget = budget_of_order(epsilon, DELTA, order)
    assert epsilon_by_order(budget, order) == pytest.approx(epsilon, abs=1e-12)
    if budget > 0:
        accountant = rdp.RdpAccountant([order], neighboring_relation=RELATION)
        accountant.compose(dpa.GaussianDpEvent(math.sqrt(order / (2 * budget))))
        assert accountant.get_epsilon(DELTA) == pytest.approx(epsilon, rel=1e-9)


def test_the_sum_of_divergences_gives_the_epsilon_of_dp_accounting() -> None:
    events = [dpa.GaussianDpEvent(20.0), repeated(sampled(4.0, 0.1), 300), repeated(sampled(9.0, 0.3), 50)]
    orders = range(2, 100)
    accountant = rdp.RdpAccountant(list(orders), neighboring_relation=RELATION)
    for event in events:
        accountant.compose(event)
    ours = min(epsilon_by_order(sum(renyi_divergence(event, order) for event in events), order) for order in orders)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)


@pytest.mark.parametrize(
    "events",
    [
        [dpa.GaussianDpEvent(5.0)],
        [dpa.GaussianDpEvent(0.8)],
        [dpa.GaussianDpEvent(50.0), repeated(sampled(12.762, 1 / 13), 1950)],
        [dpa.GaussianDpEvent(5.3), repeated(sampled(1.859, 1 / 13), 1950)],
        [dpa.GaussianDpEvent(8.0), repeated(sampled(2.0, 0.15), 120), repeated(sampled(3.0, 0.5), 20)],
        [repeated(truncated(12.7, 4096 / 50_000, 4400, 50_000), 1000)],
        [dpa.GaussianDpEvent(20.0), repeated(truncated(12.7, 4096 / 50_000, 4200, 50_000), 1000)],
        [repeated(truncated(3.0, 0.064, 80, 1000), 300)],
    ],
)
def test_what_fits_a_budget_costs_no_more_by_the_tighter_accountant(events: list[dpa.DpEvent]) -> None:
    """Where the sum of divergences is exactly the budget of (epsilon, delta), the PLD says epsilon or less."""
    tight = epsilon_of(events, DELTA)
    for order in (2, 3, 5, 8, 12, 18, 30, 49, 125):
        assert epsilon_by_order(sum(renyi_divergence(event, order) for event in events), order) >= tight


@pytest.mark.parametrize(("epsilon", "expected"), [(0.1, 125), (1.0, 18), (10.0, 3)])
def test_the_best_order_holds_the_noisiest_gaussian(epsilon: float, expected: int) -> None:
    order = best_order(epsilon, DELTA)
    assert order == expected
    share = budget_of_order(epsilon, DELTA, order) / order
    assert all(share >= budget_of_order(epsilon, DELTA, other) / other for other in range(2, LARGEST_ORDER + 1))


def test_a_delta_too_small_for_an_order_leaves_no_budget() -> None:
    assert budget_of_order(0.1, 1e-9, 2) < 0


@pytest.mark.parametrize("order", [1, 0, -2, True, 2.0])
def test_an_order_that_is_no_integer_above_one_is_refused(order: int) -> None:
    with pytest.raises(PrivacyRefused, match="order must be an integer of at least 2"):
        renyi_divergence(dpa.GaussianDpEvent(1.0), order)


@pytest.mark.parametrize(
    "event", [dpa.PoissonSampledDpEvent(0.1, truncated(2.0, 0.1, 30, 100)), dpa.LaplaceDpEvent(1.0)]
)
def test_an_event_without_a_known_bound_is_refused(event: dpa.DpEvent) -> None:
    with pytest.raises(PrivacyRefused):
        renyi_divergence(event, 4)
