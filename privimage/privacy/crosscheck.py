"""A second, independent accountant: the certified interval of Opacus's PRV accountant (Gopi et al. 2021)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import dp_accounting as dpa
from opacus.accountants.analysis.prv import (
    DiscretePRV,
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)
from scipy.stats import binom

from privimage.errors import PrivacyRefused
from privimage.privacy.events import event_from_json, event_to_json, times, without_cap
from privimage.privacy.renyi import RENYI_ORDERS, renyi_divergence, renyi_epsilon

__all__ = ["prv_interval"]

_ROUGH, _FINE = 2e-2, 4e-4
_DELTA_SHARE = 1e-3
_SMALLEST_EPSILON = 1e-2
_LARGEST_EPSILON = 200.0
_MOST_POINTS = 2e6


def prv_interval(events: Sequence[dpa.DpEvent], delta: float) -> tuple[float, float]:
    """Certified lower and upper bound on epsilon of the composition of `events` at `delta`, each about 0.05 % off.

    Wider for very many steps, so that memory stays below 1 GB.

    Batches with a cap are unknown to this accountant. A run with them differs from one without only if some batch is
    cut, which happens with a probability of at most r (the union bound over all steps). So their hockey-stick
    divergences at epsilon differ by at most s = r (1 + e^epsilon), and the bounds without a cap at delta + s and
    delta - s hold with it.

    Raises:
        PrivacyRefused: an event is no (Poisson-sampled, repeated) Gaussian, epsilon may be above 200, or
            batches are cut too often for the argument above, or Opacus's numerical checks fail.
    """
    return _interval(tuple(json.dumps(event_to_json(event)) for event in events), delta)


@lru_cache(maxsize=64)
def _interval(texts: tuple[str, ...], delta: float) -> tuple[float, float]:
    events = [event_from_json(json.loads(text)) for text in texts]
    uncut = [without_cap(event) for event in events]
    history = [_history_row(event) for event in uncut]
    largest = renyi_epsilon(uncut, 0.9 * delta)
    if largest > _LARGEST_EPSILON:
        raise PrivacyRefused(
            f"Epsilon may be {largest:.4g}: the second accountant certifies no interval above {_LARGEST_EPSILON:g}."
        )
    if largest == 0:
        return 0.0, 0.0
    ever_cut = sum(_expected_cuts(event) for event in events)
    slack = ever_cut * (1 + math.exp(largest))
    if slack > delta / 10:
        raise PrivacyRefused(
            "The second accountant does not know batches with a cap, and here they are cut too often to leave the cap "
            f"out of account (in up to {min(1.0, ever_cut):.2g} of all runs): a higher generator.finetune.largest_batch_size allows "
            "it."
        )
    delta_error = _DELTA_SHARE * delta
    near = largest
    for share in (_ROUGH, _FINE):
        domain, error = _domain(uncut, share * max(near, _SMALLEST_EPSILON), delta_error)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                losses = _composed(history, domain)
                lower = float(losses.compute_epsilon(delta + slack, delta_error, error)[0])
                near, upper = (float(bound) for bound in losses.compute_epsilon(delta - slack, delta_error, error)[1:])
        except (RuntimeError, ValueError) as failed:  # the latter of a delta that rounding would drown
            raise PrivacyRefused(f"The second accountant certifies no interval here: {failed}") from failed
    return max(0.0, lower), max(0.0, min(upper, largest))


def _composed(history: Sequence[tuple[float, float, int]], domain: Domain) -> DiscretePRV:
    losses = [PoissonSubsampledGaussianPRV(rate, noise_multiplier) for noise_multiplier, rate, _ in history]
    inside = [TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max) for loss in losses]
    return compose_heterogeneous([discretize(loss, domain) for loss in inside], [steps for _, _, steps in history])


def _domain(events: Sequence[dpa.DpEvent], wanted: float, delta_error: float) -> tuple[Domain, float]:
    """Grid of privacy losses, and the error of epsilon that it certifies: the wanted one, or what fits the memory.

    Opacus's own domain adds 3 to a bound on the privacy loss, whatever its size: at epsilon 0.1 a grid 20 times too
    large. Theorem 5.5 of Gopi et al. needs a half-width L such that single losses leave it with a probability of at
    most delta_error / 6, added up, and their sum leaves L - error with at most delta_error / 3. Either tail of a
    privacy loss with Rényi divergence D of order a lies beyond L with a probability of at most
    exp((a - 1) (D - L)) (Chernoff).
    """
    singles = [times(event) for event in events]
    count = sum(repeated for _, repeated in singles)
    inside = max(
        _tail(singles, delta_error / 12), *(_tail([(event, 1)], delta_error / 12 / count) for event, _ in singles)
    )
    cells_per_error = math.sqrt(count * math.log(12 / delta_error) / 2)
    error = max(wanted, 2 * (inside + wanted) * cells_per_error / _MOST_POINTS)
    return Domain.create_aligned(-inside - error, inside + error, error / cells_per_error), error


def _tail(singles: Sequence[tuple[dpa.DpEvent, int]], probability: float) -> float:
    """What the summed privacy loss exceeds with at most this probability, on each side."""
    return min(
        sum(count * renyi_divergence(event, order) for event, count in singles) - math.log(probability) / (order - 1)
        for order in RENYI_ORDERS
    )


def _expected_cuts(event: dpa.DpEvent) -> float:
    """How many batches exceed their cap in the mean; at least the probability that one does."""
    single, count = times(event)
    if not isinstance(single, dpa.TruncatedSubsampledGaussianDpEvent):
        return 0.0
    return count * float(binom.sf(single.truncated_batch_size, single.dataset_size, single.sampling_probability))


def _history_row(event: dpa.DpEvent) -> tuple[float, float, int]:
    """(noise multiplier, sample rate, steps), as Opacus's accountants keep them."""
    single, count = times(event)
    match single:
        case dpa.GaussianDpEvent():
            return single.noise_multiplier, 1.0, count
        case dpa.PoissonSampledDpEvent(event=dpa.GaussianDpEvent()):
            return single.event.noise_multiplier, single.sampling_probability, count
        case _:
            raise PrivacyRefused(f"The cross-check knows no {type(single).__name__}.")
