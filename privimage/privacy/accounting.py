"""From mechanisms to epsilon, and from epsilon to noise. No torch.

Epsilon is the privacy loss distribution's (PLD) pessimistic value for the composition of all events of a plan, under
the one relation of `mechanisms.RELATION`. An upper bound: the discretisation rounds against us, by about 2e-5 of
epsilon, because the grid follows from epsilon and the number of events.

>>> import dp_accounting as dpa
>>> 0.219 < epsilon_of([dpa.GaussianDpEvent(15.0)], delta=1e-5) < 0.220
True
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import dp_accounting as dpa
import numpy as np
from dp_accounting import pld
from scipy.optimize import brentq

from privimage.errors import PrivacyRefused
from privimage.privacy import numerics
from privimage.privacy.events import event_from_json, event_in_words, event_shape, event_to_json, times, without_cap
from privimage.privacy.mechanisms import RELATION
from privimage.privacy.renyi import renyi_epsilon

__all__ = [
    "LARGEST_LOSS",
    "calibrate_noise_multiplier",
    "delta_of_course",
    "deltas_of",
    "epsilon_of",
    "epsilon_of_plan",
    "event_from_json",
    "event_in_words",
    "event_shape",
    "event_to_json",
    "is_accountable",
    "lost_attempts",
]

LARGEST_LOSS = 300.0
# Rounding adds a variance of about grid^2 / 6 per event: this share keeps it near 1e-5 of epsilon, at 1e5 points or so.
_GRID_SHARE = 4e-3
# Below this, differences of float64 divergences are noise; it makes epsilon larger, and useless.
_FINEST_GRID = 2.0**-20
_MOST_POINTS = 2e5
_SMALLEST_EPSILON = 1e-2
_NOISE_TOLERANCE = 2e-5
# Of delta, for all courses together in which something is lost.
_LOST_SHARE = 2.0**-10


def epsilon_of(events: Sequence[dpa.DpEvent], delta: float) -> float:
    """Epsilon (upper bound) of the adaptive composition of `events` at `delta`; 0 for no event.

    By the privacy loss distribution. Where so little noise is added (a multiplier below 0.06) that single losses may
    exceed `LARGEST_LOSS`, by Rényi divergences: a bound too, if a looser one, that needs neither memory nor time.
    Infinite where there is no noise. What rounding of noise may add is added (`numerics.py`).
    """
    texts = tuple(sorted(json.dumps(event_to_json(event), sort_keys=True) for event in events))
    return _epsilon(texts, delta * (1 - numerics.DELTA_SHARE)) + numerics.EPSILON if texts else 0.0


def epsilon_of_plan(
    own: Sequence[dpa.DpEvent], builds_on: Sequence[dpa.DpEvent], delta: float, *, lost: int = 0, lost_before: int = 0
) -> float:
    """Epsilon (upper bound) at `delta` of `own`, which were fixed together in advance, and of `builds_on` before them.

    Events that were fixed in advance compose tightly. What was chosen after the results of others were seen does not:
    there the privacy loss distribution of the composition is no bound. So the two groups get half of delta each, and
    their epsilons are added, which holds for any adaptive choice.

    Args:
        lost, lost_before: attempts in each group whose result was lost, and which were made again (see `delta_of_course`).
    """
    if not builds_on:
        return epsilon_of(own, delta_of_course(delta, lost))
    before = epsilon_of(builds_on, delta_of_course(delta / 2, lost_before))
    return epsilon_of(own, delta_of_course(delta / 2, lost)) + before


def delta_of_course(delta: float, lost: int) -> float:
    """The share of delta for the course of a plan in which so many attempts were lost and made again.

    That an attempt is lost may depend on its result, and fine-tuning's noise then follows from how many were. But each course
    is a composition that was fixed in advance, and exactly one happens: if each keeps epsilon at its share of delta, and the
    shares add up to delta, the plan keeps (epsilon, delta). Proof in docs/privacy.md, "Several courses of a plan".
    """
    return delta * (1 - _LOST_SHARE) if lost == 0 else delta * _LOST_SHARE * 2.0**-lost


def lost_attempts(stages: Sequence[str]) -> int:
    """How many attempts a group of charges lost, from the stage of each: in one course a stage is charged once."""
    return len(stages) - len(set(stages))


@lru_cache(maxsize=1024)
def _epsilon(texts: tuple[str, ...], delta: float) -> float:
    events = [event_from_json(json.loads(text)) for text in texts]
    largest_loss = max(_largest_loss(times(event)[0]) for event in events)
    if largest_loss > LARGEST_LOSS:
        return renyi_epsilon(events, delta)
    count = sum(times(event)[1] for event in events)
    near = renyi_epsilon([without_cap(event) for event in events], delta)
    grid = _grid(near, count, largest_loss)
    while True:
        found = _epsilon_on_grid(events, delta, grid)
        if math.isinf(found):
            # What the distribution leaves out of its tail is more than delta: it has no answer, the looser bound has.
            return renyi_epsilon(events, delta)
        # Where Rényi accounting is far off, the grid was made for a larger epsilon than there is.
        nearer = max(found, near / 100)
        finer = _grid(nearer, count, largest_loss)
        if found > near / 3 or finer == grid:
            return found
        near, grid = nearer, finer


def _grid(epsilon: float, count: int, largest_loss: float) -> float:
    """For about this epsilon of so many events. A power of 2, so that platforms agree and losses are exact."""
    wanted = _GRID_SHARE * max(epsilon, _SMALLEST_EPSILON) / math.sqrt(count)
    return float(2.0 ** math.floor(math.log2(max(wanted, _FINEST_GRID, largest_loss / _MOST_POINTS))))


def _largest_loss(event: dpa.DpEvent) -> float:
    """Of a Gaussian at ten standard deviations; sampling makes it smaller, displacing another image larger."""
    match event:
        case dpa.PoissonSampledDpEvent():
            return _largest_loss(times(event.event)[0])
        case dpa.TruncatedSubsampledGaussianDpEvent():
            noise = event.noise_multiplier / 4
        case _:
            noise = event.noise_multiplier
    return 10 / noise + 1 / (2 * noise**2) if noise > 1e-9 else math.inf


def deltas_of(events: Sequence[dpa.DpEvent], epsilons: Sequence[float]) -> list[float]:
    """Delta (upper bound) of the composition of `events` at each of `epsilons`; 1 where there is next to no noise."""
    largest_loss = max(_largest_loss(times(event)[0]) for event in events)
    if largest_loss > LARGEST_LOSS:
        return [1.0] * len(epsilons)
    near = renyi_epsilon([without_cap(event) for event in events], 1e-5)
    grid = _grid(near, sum(times(event)[1] for event in events), largest_loss)
    accountant = _composed(events, grid)
    return [float(accountant.get_delta(epsilon)) for epsilon in epsilons]


def _epsilon_on_grid(events: Sequence[dpa.DpEvent], delta: float, grid: float) -> float:
    accountant = _composed(events, grid)
    with np.errstate(over="ignore"):  # what overflows in there is infinite, and meant so
        return float(accountant.get_epsilon(delta))


def _composed(events: Sequence[dpa.DpEvent], grid: float) -> pld.PLDAccountant:
    accountant = pld.PLDAccountant(RELATION, value_discretization_interval=grid)
    for event in events:
        accountant.compose(event)
    return accountant


def calibrate_noise_multiplier(
    make_event: Callable[[float], dpa.DpEvent], *, epsilon: float, delta: float, prior: Sequence[dpa.DpEvent]
) -> float:
    """The least noise multiplier for which `prior` and `make_event(noise_multiplier)` together cost at most `epsilon`.

    Guarantee: `epsilon_of([*prior, make_event(result)], delta) <= epsilon`, and 1e-4 less noise costs more.

    Raises:
        PrivacyRefused: `prior` alone costs all of epsilon.
    """
    spent = epsilon_of(prior, delta)
    if spent >= 0.999 * epsilon:
        raise PrivacyRefused(
            f"What comes before fine-tuning costs epsilon {spent:.4g} of {epsilon:g}, nothing is left for fine-tuning: "
            "raise privacy.query_error (or query_noise_multiplier), privacy.class_means_noise_multiplier where class mean images "
            "are used, or epsilon."
        )

    def cost(log_noise: float) -> float:
        return epsilon_of([*prior, make_event(math.exp(log_noise))], delta)

    def excess(log_noise: float) -> float:
        return math.log(max(cost(log_noise), 1e-9 * epsilon) / epsilon)

    low = high = 0.0
    while cost(high) > epsilon:
        low, high = high, high + 1
    while cost(low) <= epsilon:
        low, high = low - 1, low
    enough = float(brentq(excess, low, high, xtol=_NOISE_TOLERANCE)) + _NOISE_TOLERANCE
    while cost(enough) > epsilon:
        enough += _NOISE_TOLERANCE
    return math.exp(enough)


@lru_cache(maxsize=256)
def is_accountable(epsilon: float, delta: float) -> bool:
    """Whether noise is found for which one release, and many sampled ones, cost about this epsilon at this delta."""

    def sampled(noise_multiplier: float) -> dpa.DpEvent:
        return dpa.SelfComposedDpEvent(dpa.PoissonSampledDpEvent(0.01, dpa.GaussianDpEvent(noise_multiplier)), 1000)

    for event_with in (dpa.GaussianDpEvent, sampled):
        noise = calibrate_noise_multiplier(event_with, epsilon=epsilon, delta=delta, prior=[])
        if not epsilon / 10 < epsilon_of([event_with(noise)], delta) <= epsilon:
            return False
    return True
