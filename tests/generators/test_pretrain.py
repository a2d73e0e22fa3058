"""Public pre-training: it learns, it can be interrupted anywhere, and it stops when it diverges."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from privimage.errors import TrainingError
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.training.pretrain import PretrainState, evenly, learning_rate_at, pretrain
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionPretrain

CONFIG = DiffusionPretrain(num_steps=8, batch_size=16, learning_rate=2e-3, horizontal_flip=True)


class Killed(Exception):
    pass


def denoiser() -> Denoiser:
    return new_denoiser(DenoiserConfig(base_channels=8, channel_multipliers=(1, 2)), channels=1, num_classes=2, seed=0)


def bars(num: int = 60) -> tuple[Tensor, Tensor]:
    labels = torch.arange(num) % 2
    images = torch.zeros(num, 1, 8, 8, dtype=torch.uint8)
    images[labels == 0, :, 3:5] = 255
    images[labels == 1, :, :, 3:5] = 255
    return images, labels


def train(
    config: DiffusionPretrain = CONFIG,
    state: PretrainState | None = None,
    on_step: Callable[[PretrainState, float], None] = lambda state, loss: None,
) -> PretrainState:
    return pretrain(denoiser(), bars()[0], evenly(bars()[1]), config, state=state, on_step=on_step)


def same(first: PretrainState, second: PretrainState) -> bool:
    groups = ("weights", "ema", "exp_avg", "exp_avg_sq")
    return first.step == second.step and all(
        torch.equal(getattr(first, group)[name], getattr(second, group)[name])
        for group in groups
        for name in first.weights
    )


@pytest.mark.parametrize("killed_at", [1, 5])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(killed_at: int) -> None:
    saved: list[PretrainState] = []

    def die(state: PretrainState, loss: float) -> None:
        state.curve.append((state.step, loss))
        if state.step == killed_at:
            saved.append(copy.deepcopy(state))
            raise Killed

    def keep(state: PretrainState, loss: float) -> None:
        state.curve.append((state.step, loss))

    whole = train(on_step=keep)
    with pytest.raises(Killed):
        train(on_step=die)
    resumed = train(state=saved[0], on_step=keep)
    assert same(whole, resumed)
    assert whole.curve == resumed.curve
    assert [step for step, _ in whole.curve] == list(range(1, 9))


def test_a_resume_that_forgets_the_moments_would_show() -> None:
    saved: list[PretrainState] = []
    whole = train(on_step=lambda state, _: saved.append(copy.deepcopy(state)) if state.step == 5 else None)
    saved[0].exp_avg_sq = {name: torch.zeros_like(tensor) for name, tensor in saved[0].exp_avg_sq.items()}
    assert not same(whole, train(state=saved[0]))


def test_a_finished_training_is_not_gone_on_with() -> None:
    whole = train()
    assert same(whole, train(state=copy.deepcopy(whole), on_step=lambda *_: pytest.fail("a step was made")))


def test_the_state_holds_live_tensors_and_no_generator() -> None:
    state = train()
    assert {field.name for field in fields(state)} == {"step", "weights", "ema", "exp_avg", "exp_avg_sq", "curve"}
    assert not any(torch.equal(state.weights[name], state.ema[name]) for name in state.weights)


def test_the_loss_falls() -> None:
    losses: list[float] = []
    train(CONFIG.model_copy(update={"num_steps": 150}), on_step=lambda _, loss: losses.append(loss))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_one_seed_gives_one_training_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = train(), train(), train(CONFIG.model_copy(update={"seed": 1}))
    assert same(first, again)
    assert not same(first, other)
    assert not same(first, train(CONFIG.model_copy(update={"seed": 2**31 - 1})))
    assert torch.equal(before, torch.get_rng_state())


def test_every_step_draws_anew() -> None:
    losses: list[float] = []
    train(CONFIG.model_copy(update={"learning_rate": 1e-12}), on_step=lambda _, loss: losses.append(loss))
    assert max(losses) - min(losses) > 1e-3, "at a standstill, only new draws can change the loss"


def test_a_learning_rate_that_diverges_is_an_error_with_advice() -> None:
    with pytest.raises(
        TrainingError, match=r"diverged at step \d+: the loss is (nan|inf); lower generator\.pretrain\.learning_rate"
    ):
        train(CONFIG.model_copy(update={"learning_rate": 1e30}))


def test_it_stops_at_the_step_whose_loss_is_not_finite() -> None:
    told: list[int] = []
    with pytest.raises(TrainingError, match="diverged at step 1: the loss is"):
        train(CONFIG.model_copy(update={"learning_rate": 1e30}), on_step=lambda state, _: told.append(state.step))
    assert told == [1]


def test_a_last_step_that_spoils_the_weights_is_found() -> None:
    def spoil(state: PretrainState, loss: float) -> None:
        if state.step == CONFIG.num_steps:
            next(iter(state.ema.values()))[0] = float("inf")

    with pytest.raises(
        TrainingError, match=r"diverged at step 7: a weight is not finite; lower generator\.pretrain\.learning"
    ):
        train(on_step=spoil)


def test_images_mapped_from_a_file_train_the_same_denoiser() -> None:
    images, labels = bars()
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=tuple(images.shape))
    mapped[:] = images.numpy()
    again = pretrain(
        denoiser(), torch.from_numpy(mapped), evenly(labels), CONFIG, state=None, on_step=lambda state, loss: None
    )
    assert same(train(), again)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    config = DiffusionPretrain(num_steps=1000, learning_rate=1e-3)
    rates = [learning_rate_at(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5) and rates[99] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4, rel=0.01)
    assert all(later <= earlier for earlier, later in pairwise(rates[100:]))
    assert 0 < learning_rate_at(0, DiffusionPretrain(num_steps=1)) <= 1e-3
