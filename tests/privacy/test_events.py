"""The shape of an event is all that was fixed with a plan: whatever costs something but its noise."""

from __future__ import annotations

import secrets

import dp_accounting as dpa
import pytest

from privimage.errors import PrivacyRefused
from privimage.privacy.budget import Plan
from privimage.privacy.events import event_shape
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import ClassSumRounds
from privimage.store.files import Store


def sampled(rate: float, noise: float = 2.0, steps: int = 10) -> dpa.DpEvent:
    return dpa.SelfComposedDpEvent(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(noise)), steps)


def cut(**changed: float) -> dpa.DpEvent:
    numbers = {"dataset_size": 1000, "sampling_probability": 0.01, "truncated_batch_size": 20, "noise_multiplier": 2.0}
    return dpa.SelfComposedDpEvent(dpa.TruncatedSubsampledGaussianDpEvent(**{**numbers, **changed}), 10)


@pytest.mark.parametrize(
    "other",
    [
        sampled(0.02),
        sampled(0.01, steps=11),
        dpa.PoissonSampledDpEvent(0.01, dpa.GaussianDpEvent(2.0)),
        dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(2.0), 10),
        dpa.GaussianDpEvent(2.0),
        cut(),
    ],
)
def test_another_rate_count_or_kind_is_another_shape_and_another_noise_is_none(other: dpa.DpEvent) -> None:
    assert event_shape(sampled(0.01)) != event_shape(other)
    assert event_shape(sampled(0.01)) == event_shape(sampled(0.01, noise=3.0))


@pytest.mark.parametrize("number", ["dataset_size", "sampling_probability", "truncated_batch_size"])
def test_each_number_of_a_cut_batch_but_its_noise_belongs_to_its_shape(number: str) -> None:
    other = 0.02 if number == "sampling_probability" else 30
    assert event_shape(cut()) != event_shape(cut(**{number: other}))
    assert event_shape(cut()) == event_shape(cut(noise_multiplier=3.0))


def test_a_plan_that_was_opened_for_a_small_sampling_rate_pays_for_no_larger_one() -> None:
    """Chosen after its first result was seen, it would be accounted as if it had been fixed before."""
    ledger = Ledger(Store.open(f"memory://{secrets.token_hex(6)}"), "faces")
    ledger.grant(epsilon=8.0, delta=1e-6, num_images=1000, name="faces")
    query = dpa.GaussianDpEvent(20.0)
    plan = Plan(id="plan", epsilon=8.0, delta=1e-6, intends=(query, sampled(0.01)))

    def reserve(event: dpa.DpEvent, stage: str) -> object:
        return ledger.reserve(stage=stage, key=stage, event=event, plan=plan, num_images=1000, run="a run")

    reserve(query, "query")
    with pytest.raises(PrivacyRefused, match="was opened for other mechanisms"):
        reserve(sampled(0.02, noise=20.0), "finetune")
    reserve(sampled(0.01), "finetune")


def test_sums_of_each_number_of_rounds_cost_as_many_gaussians() -> None:
    def event(*dimensions: int) -> dpa.DpEvent:
        return ClassSumRounds(num_images=100, num_classes=3, dimensions=dimensions, noise_multiplier=5.0).event

    single = dpa.GaussianDpEvent(5.0)
    assert event(7) == single
    assert event(7, 9) == dpa.SelfComposedDpEvent(single, 2)
    assert event(7, 9, 4) == dpa.SelfComposedDpEvent(single, 3)
