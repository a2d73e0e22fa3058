"""The moving average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from privimage.generators.training.ema import ema_copy, ema_update


def test_a_copy_is_detached_and_independent() -> None:
    weights = {"w": nn.Parameter(torch.ones(3))}
    average = ema_copy(weights)
    with torch.no_grad():
        weights["w"].add_(1)
    assert average["w"].tolist() == [1, 1, 1]
    assert not average["w"].requires_grad


def test_the_average_moves_by_one_minus_decay_late_in_training() -> None:
    average = {"w": torch.tensor([0.0])}
    ema_update(average, {"w": torch.tensor([1.0])}, decay=0.9, step=1_000_000)
    assert float(average["w"]) == pytest.approx(0.1)


@pytest.mark.parametrize(("step", "weight"), [(1, 1 - 2 / 11), (10, 1 - 11 / 20), (79, 1 - 80 / 89)])
def test_early_steps_forget_the_beginning_faster(step: int, weight: float) -> None:
    average = {"w": torch.tensor([0.0])}
    ema_update(average, {"w": torch.tensor([1.0])}, decay=0.99, step=step)
    assert float(average["w"]) == pytest.approx(weight)


def test_constant_weights_are_their_own_average() -> None:
    average = {"w": torch.full((4,), 0.3)}
    for step in range(1, 50):
        ema_update(average, {"w": torch.full((4,), 0.3)}, decay=0.95, step=step)
    torch.testing.assert_close(average["w"], torch.full((4,), 0.3))


def test_no_decay_is_the_last_weights() -> None:
    average = {"w": torch.zeros(2)}
    ema_update(average, {"w": torch.tensor([1.0, 2.0])}, decay=0.0, step=5)
    assert average["w"].tolist() == [1.0, 2.0]
