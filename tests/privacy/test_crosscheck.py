"""The second accountant: its certified interval holds the first one's answer, and shows a forgotten release."""

from __future__ import annotations

import dp_accounting as dpa
import pytest

from privimage.errors import PrivacyRefused
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.crosscheck import prv_interval

DELTA = 1e-5


def dp_sgd(noise_multiplier: float, sample_rate: float, num_steps: int) -> dpa.DpEvent:
    return dpa.SelfComposedDpEvent(
        dpa.PoissonSampledDpEvent(sample_rate, dpa.GaussianDpEvent(noise_multiplier)), num_steps
    )


@pytest.mark.parametrize(
    "events",
    [
        [dpa.GaussianDpEvent(5.0)],
        [dpa.PoissonSampledDpEvent(0.2, dpa.GaussianDpEvent(1.5))],
        [dpa.GaussianDpEvent(50.0), dp_sgd(12.762, 1 / 13, 1950)],
        [dpa.GaussianDpEvent(5.3), dp_sgd(1.859, 1 / 13, 1950)],
        [dpa.GaussianDpEvent(8.0), dp_sgd(2.0, 0.15, 120)],
    ],
)
def test_epsilon_lies_in_the_certified_interval(events: list[dpa.DpEvent]) -> None:
    lower, upper = prv_interval(events, DELTA)
    found = epsilon_of(events, DELTA)
    assert lower <= found <= upper + 2e-4
    assert upper - lower <= 0.005 * found + 1e-3


def test_a_forgotten_release_falls_below_the_interval() -> None:
    query, step = dpa.GaussianDpEvent(10.0), dp_sgd(4.0, 0.1, 100)
    lower, _ = prv_interval([query, step], DELTA)
    assert epsilon_of([step], DELTA) < lower
    assert epsilon_of([query, dp_sgd(4.0, 0.1, 90)], DELTA) < lower


def test_an_event_it_does_not_know_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match="LaplaceDpEvent"):
        prv_interval([dpa.LaplaceDpEvent(1.0)], DELTA)
