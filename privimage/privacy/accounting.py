"""From mechanisms to epsilon, and from epsilon to noise. No torch.

Epsilon is the privacy loss distribution's (PLD) pessimistic value for the composition of all events of a plan, under
the one relation of `mechanisms.RELATION`. An upper bound: the discretisation rounds against us.

>>> import dp_accounting as dpa
>>> 0.23 < epsilon_of([dpa.GaussianDpEvent(15.0)], delta=1e-5) < 0.25
True
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import dp_accounting as dpa
from dp_accounting import pld, rdp

from privimage.errors import LedgerBroken, PrivacyRefused
from privimage.privacy.mechanisms import RELATION

__all__ = [
    "calibrate_noise_multiplier",
    "epsilon_of",
    "epsilon_of_plan",
    "event_from_json",
    "event_in_words",
    "event_shape",
    "event_to_json",
]

_GRID = 1e-4
_NOISE_TOLERANCE = 1e-4
_RENYI_ORDERS = [*range(2, 64), 128, 256, 512, 1024]


def event_to_json(event: dpa.DpEvent) -> dict[str, Any]:
    """A DpEvent as nested JSON, with dp_accounting's class names."""
    match event:
        case dpa.GaussianDpEvent():
            return {"event": "GaussianDpEvent", "noise_multiplier": event.noise_multiplier}
        case dpa.PoissonSampledDpEvent():
            return {
                "event": "PoissonSampledDpEvent",
                "sampling_probability": event.sampling_probability,
                "of": event_to_json(event.event),
            }
        case dpa.SelfComposedDpEvent():
            return {"event": "SelfComposedDpEvent", "count": event.count, "of": event_to_json(event.event)}
        case _:
            raise PrivacyRefused(f"The mechanism {type(event).__name__} has no place in the ledger's format 1.")


def event_from_json(data: Any) -> dpa.DpEvent:
    """Inverse of `event_to_json`; an event of another version is refused, never skipped."""
    try:
        match data["event"]:
            case "GaussianDpEvent":
                return dpa.GaussianDpEvent(float(data["noise_multiplier"]))
            case "PoissonSampledDpEvent":
                return dpa.PoissonSampledDpEvent(float(data["sampling_probability"]), event_from_json(data["of"]))
            case "SelfComposedDpEvent":
                return dpa.SelfComposedDpEvent(event_from_json(data["of"]), int(data["count"]))
            case other:
                raise LedgerBroken(
                    f"The ledger names a mechanism {other!r} that this version does not know: update privimage."
                )
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerBroken(f"The ledger holds a mechanism that cannot be read: {json.dumps(data)[:200]}") from error


def event_in_words(event: dpa.DpEvent) -> str:
    """One line for people."""
    match event:
        case dpa.GaussianDpEvent():
            return f"Gaussian noise, {event.noise_multiplier:.4g} times the sensitivity"
        case dpa.PoissonSampledDpEvent():
            return f"{event_in_words(event.event)}, on Poisson samples of rate {event.sampling_probability:.4g}"
        case dpa.SelfComposedDpEvent():
            return f"{event.count} steps of: {event_in_words(event.event)}"
        case _:
            return str(event)


def epsilon_of(events: Sequence[dpa.DpEvent], delta: float) -> float:
    """Epsilon (upper bound, PLD) of the adaptive composition of `events` at `delta`; 0 for no event."""
    texts = tuple(sorted(json.dumps(event_to_json(event), sort_keys=True) for event in events))
    return _epsilon(texts, delta)


def epsilon_of_plan(own: Sequence[dpa.DpEvent], builds_on: Sequence[dpa.DpEvent], delta: float) -> float:
    """Epsilon (upper bound) at `delta` of `own`, which were fixed together in advance, and of `builds_on` before them.

    Events that were fixed in advance compose tightly. What was chosen after the results of others were seen does not:
    there the privacy loss distribution of the composition is no bound. So the two groups get half of delta each, and
    their epsilons are added, which holds for any adaptive choice.
    """
    if not builds_on:
        return epsilon_of(own, delta)
    return epsilon_of(own, delta / 2) + epsilon_of(builds_on, delta / 2)


def event_shape(event: dpa.DpEvent) -> str:
    """All of an event but its noise: which mechanism, how often, at which sampling rate."""

    def without_noise(data: dict[str, Any]) -> dict[str, Any]:
        return {
            name: without_noise(value) if isinstance(value, dict) else value
            for name, value in data.items()
            if name != "noise_multiplier"
        }

    return json.dumps(without_noise(event_to_json(event)), sort_keys=True)


@lru_cache(maxsize=256)
def _epsilon(texts: tuple[str, ...], delta: float) -> float:
    if not texts:
        return 0.0
    accountant = pld.PLDAccountant(RELATION, value_discretization_interval=_GRID)
    for text in texts:
        accountant.compose(event_from_json(json.loads(text)))
    return float(accountant.get_epsilon(delta))


def calibrate_noise_multiplier(
    make_event: Callable[[float], dpa.DpEvent], *, epsilon: float, delta: float, prior: Sequence[dpa.DpEvent]
) -> float:
    """The least noise multiplier for which `prior` and `make_event(noise_multiplier)` together cost at most `epsilon`.

    Guarantee: `epsilon_of([*prior, make_event(result)], delta) <= epsilon`.

    Raises:
        PrivacyRefused: `prior` alone costs all of epsilon.
    """
    spent = epsilon_of(prior, delta)
    if spent >= 0.999 * epsilon:
        raise PrivacyRefused(
            f"The query alone costs epsilon {spent:.4g} of {epsilon:g}, nothing is left for fine-tuning: "
            "raise privacy.query_error (or query_noise_multiplier) or epsilon."
        )

    def composed(noise_multiplier: float) -> dpa.DpEvent:
        return dpa.ComposedDpEvent([*prior, make_event(noise_multiplier)])

    def calibrate(make_accountant: Callable[[], dpa.PrivacyAccountant], interval: Any, tolerance: float) -> float:
        return float(
            dpa.calibrate_dp_mechanism(
                make_accountant, composed, epsilon, delta, bracket_interval=interval, tol=tolerance
            )
        )

    # Renyi accounting at integer orders is quick at any noise and never below the PLD's answer by more than its grid: it makes the
    # bracket, so that the PLD is never evaluated at noise so small that its grid would fill the memory.
    loose = calibrate(
        lambda: rdp.RdpAccountant(_RENYI_ORDERS, neighboring_relation=RELATION),
        dpa.LowerEndpointAndGuess(0.05, 2.0),
        1e-3,
    )
    upper = 1.05 * loose
    lower = 0.8 * loose
    while epsilon_of([*prior, make_event(lower)], delta) <= epsilon:
        lower, upper = 0.8 * lower, lower
    tight = calibrate(
        lambda: pld.PLDAccountant(RELATION, value_discretization_interval=_GRID),
        dpa.ExplicitBracketInterval(lower, upper),
        _NOISE_TOLERANCE * loose,
    )
    # The root is found on one composition order and charged on another; their grids may differ in the last digits.
    while epsilon_of([*prior, make_event(tight)], delta) > epsilon:
        tight *= 1 + _NOISE_TOLERANCE
    return tight
