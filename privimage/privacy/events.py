"""Events: a mechanism as dp_accounting's data, as JSON for the ledger, and in words. No torch."""

from __future__ import annotations

import json
import sys
from typing import Any

import dp_accounting as dpa

from privimage.errors import LedgerBroken, PrivacyRefused

__all__ = ["event_from_json", "event_in_words", "event_shape", "event_to_json", "times", "without_cap"]


# Steps and images; more can be no honest number, and would not fit the accountants' arithmetic.
_MOST = 10**15


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
        case dpa.TruncatedSubsampledGaussianDpEvent():
            return {
                "event": "TruncatedSubsampledGaussianDpEvent",
                "dataset_size": event.dataset_size,
                "sampling_probability": event.sampling_probability,
                "truncated_batch_size": event.truncated_batch_size,
                "noise_multiplier": event.noise_multiplier,
            }
        case _:
            raise PrivacyRefused(f"The mechanism {type(event).__name__} has no place in the ledger's format 1.")


def event_from_json(data: Any) -> dpa.DpEvent:
    """Inverse of `event_to_json`; an event of another version, or with a number that is none, is refused, never skipped."""
    try:
        match data["event"]:
            case "GaussianDpEvent":
                return dpa.GaussianDpEvent(_number(data["noise_multiplier"]))
            case "PoissonSampledDpEvent":
                return dpa.PoissonSampledDpEvent(_number(data["sampling_probability"], 1), event_from_json(data["of"]))
            case "SelfComposedDpEvent":
                return dpa.SelfComposedDpEvent(event_from_json(data["of"]), _count(data["count"]))
            case "TruncatedSubsampledGaussianDpEvent":
                return dpa.TruncatedSubsampledGaussianDpEvent(
                    dataset_size=_count(data["dataset_size"]),
                    sampling_probability=_number(data["sampling_probability"], 1),
                    truncated_batch_size=_count(data["truncated_batch_size"]),
                    noise_multiplier=_number(data["noise_multiplier"]),
                )
            case other:
                raise LedgerBroken(
                    f"The ledger names a mechanism {other!r} that this version does not know: update privimage."
                )
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerBroken(f"The ledger holds a mechanism that cannot be read: {json.dumps(data)[:200]}") from error


def _number(found: object, largest: float = sys.float_info.max) -> float:
    """NaN would pass every comparison with a budget; less than nothing would make room in it."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= largest:
        raise ValueError(f"{found!r} is no number from 0 to {largest:g}")
    return float(found)


def _count(found: object) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= _MOST:
        raise ValueError(f"{found!r} is no count")
    return found


def event_in_words(event: dpa.DpEvent) -> str:
    """One line for people."""
    match event:
        case dpa.GaussianDpEvent():
            return f"Gaussian noise, {event.noise_multiplier:.4g} times the sensitivity"
        case dpa.PoissonSampledDpEvent():
            return f"{event_in_words(event.event)}, on Poisson samples of rate {event.sampling_probability:.4g}"
        case dpa.TruncatedSubsampledGaussianDpEvent():
            return (
                f"Gaussian noise, {event.noise_multiplier:.4g} times the sensitivity, on Poisson samples of rate "
                f"{event.sampling_probability:.4g}, cut at random to at most {event.truncated_batch_size} of "
                f"{event.dataset_size} images"
            )
        case dpa.SelfComposedDpEvent():
            return f"{event.count} steps of: {event_in_words(event.event)}"
        case _:
            return str(event)


def event_shape(event: dpa.DpEvent) -> str:
    """All of an event but its noise: which mechanism, how often, at which sampling rate."""

    def without_noise(data: dict[str, Any]) -> dict[str, Any]:
        return {
            name: without_noise(value) if isinstance(value, dict) else value
            for name, value in data.items()
            if name != "noise_multiplier"
        }

    return json.dumps(without_noise(event_to_json(event)), sort_keys=True)


def times(event: dpa.DpEvent) -> tuple[dpa.DpEvent, int]:
    """The event that is repeated, and how often, over all levels of repetition."""
    if isinstance(event, dpa.SelfComposedDpEvent):
        single, count = times(event.event)
        return single, count * int(event.count)
    return event, 1


def without_cap(event: dpa.DpEvent) -> dpa.DpEvent:
    """The same event with batches of any size."""
    match event:
        case dpa.SelfComposedDpEvent():
            return dpa.SelfComposedDpEvent(without_cap(event.event), event.count)
        case dpa.TruncatedSubsampledGaussianDpEvent():
            return dpa.PoissonSampledDpEvent(event.sampling_probability, dpa.GaussianDpEvent(event.noise_multiplier))
        case _:
            return event
