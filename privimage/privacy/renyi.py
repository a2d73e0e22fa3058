"""Rényi bounds: what an event costs at one order, and how much of that order an (epsilon, delta) holds. No torch.

Rényi divergences of one fixed order add up also where each event is chosen after the results of the earlier ones
(Feldman and Zrnic 2021): a sum that stays within `budget_of_order` is (epsilon, delta)-differentially private.

>>> import dp_accounting as dpa
>>> renyi_divergence(dpa.GaussianDpEvent(2.0), 8)
1.0
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache

import dp_accounting as dpa
from dp_accounting import rdp
from scipy.stats import binom

from privimage.errors import PrivacyRefused
from privimage.privacy.events import event_from_json, event_in_words, event_to_json, without_cap
from privimage.privacy.mechanisms import RELATION

__all__ = ["LARGEST_ORDER", "RENYI_ORDERS", "best_order", "budget_of_order", "renyi_divergence", "renyi_epsilon"]

LARGEST_ORDER = 1024
RENYI_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)


def renyi_divergence(event: dpa.DpEvent, order: int) -> float:
    """Upper bound on the Rényi divergence of `order` (an integer, at least 2) that one image makes, in both directions.

    The relation is `mechanisms.RELATION`. Source: Mironov, Talwar and Zhang (2019), as dp_accounting computes it. For
    truncated batches see `_truncated`. Infinite for no noise.

    Raises:
        PrivacyRefused: the event is no (sampled, truncated, repeated) Gaussian, or the order is no such integer.
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 2:
        raise PrivacyRefused(f"A Rényi order must be an integer of at least 2, found {order!r}.")
    return _divergence(json.dumps(event_to_json(event), sort_keys=True), order)


def budget_of_order(epsilon: float, delta: float, order: int) -> float:
    """The largest Rényi divergence of `order` from which (epsilon, delta)-differential privacy follows.

    Negative where the order is too small for this delta: then there is no budget at this order. Source: Canonne,
    Kamath and Steinke (2020), Proposition 12, solved for the divergence; dp_accounting converts by the same formula.
    """
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def best_order(epsilon: float, delta: float) -> int:
    """The order in 2..`LARGEST_ORDER` that holds most Gaussian noise cost: the largest `budget_of_order` / order.

    A Gaussian mechanism costs order / (2 noise_multiplier^2), and so, nearly, does DP-SGD of many steps: the order
    that is best for them does not depend on their noise.
    """
    return max(range(2, LARGEST_ORDER + 1), key=lambda order: budget_of_order(epsilon, delta, order) / order)


def renyi_epsilon(events: Sequence[dpa.DpEvent], delta: float) -> float:
    """Upper bound on epsilon of the composition of `events` at `delta`: the best that `RENYI_ORDERS` give."""
    return max(0.0, min(_epsilon_at_order(events, delta, order) for order in RENYI_ORDERS))


def _epsilon_at_order(events: Sequence[dpa.DpEvent], delta: float, order: int) -> float:
    return sum(renyi_divergence(event, order) for event in events) - budget_of_order(0.0, delta, order)


@lru_cache(maxsize=4096)
def _divergence(text: str, order: int) -> float:
    return _bound(event_from_json(json.loads(text)), order)


def _bound(event: dpa.DpEvent, order: int) -> float:
    match event:
        case dpa.SelfComposedDpEvent():
            return int(event.count) * _bound(event.event, order)
        case dpa.TruncatedSubsampledGaussianDpEvent():
            return _truncated(event, order)
    accountant = rdp.RdpAccountant([order], neighboring_relation=RELATION)
    if not accountant.supports(event):
        raise PrivacyRefused(f"No Rényi bound is known for this mechanism: {event_in_words(event)}.")
    return max(0.0, float(accountant.compose(event).rdp[0]))


def _truncated(event: dpa.TruncatedSubsampledGaussianDpEvent, order: int) -> float:
    """A mixture by whether the other images reach the cap, which one image has no part in.

    exp((order - 1) * divergence) is jointly convex in the two distributions, so the mixture's is at most the mixture
    of both cases'. If the others stay below the cap, nothing is cut, and the step is Poisson-sampled. If they reach
    it, the image is kept with a probability of at most k = min(rate, cap / N), and displaces one of the others: the
    sum is N(0) mixed with k of a Gaussian at distance 2, against a mixture that holds N(0) by 1 - k. The latter is at
    least (1 - k) N(0), hence the factor (1 - k)^(1 - order). This covers the pair that dp_accounting's privacy loss
    distribution uses for this case (replace-one).
    """
    rate, cap, num_images = event.sampling_probability, event.truncated_batch_size, event.dataset_size
    untruncated = _bound(without_cap(event), order)
    if rate == 0 or cap >= num_images:
        return untruncated
    kept = min(rate, cap / num_images)
    displacing = dpa.PoissonSampledDpEvent(kept, dpa.GaussianDpEvent(event.noise_multiplier / 2))
    exponent = order - 1
    if_cut = max((_bound(displacing, order) - math.log1p(-kept)) * exponent, untruncated * exponent)
    log_cut = _log_probability_that_others_reach(cap, num_images - 1, rate)
    log_not_cut = math.log1p(-math.exp(log_cut)) if log_cut < 0 else -math.inf
    larger, smaller = sorted((log_cut + if_cut, log_not_cut + untruncated * exponent), reverse=True)
    return max(untruncated, (larger + math.log1p(math.exp(smaller - larger))) / exponent)


def _log_probability_that_others_reach(cap: int, others: int, rate: float) -> float:
    """Logarithm of P(Binomial(others, rate) >= cap); Chernoff's bound where that is too small for a float."""
    probability = float(binom.sf(cap - 1, others, rate))
    if probability > 1e-290:
        return math.log(probability)
    share = cap / others
    rest = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
    return -others * (share * math.log(share / rate) + rest)
