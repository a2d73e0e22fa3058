"""Private fine-tuning: exactly the accounted draws, a state without secrets, and learning where noise allows it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from privimage.data.pixels import from_pixels
from privimage.errors import ConfigError
from privimage.generators.diffusion.denoiser import Denoiser, noise_rows
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.finetune import FinetuneState, finetune, start_state
from privimage.generators.training.private_sum import PrivateSum
from privimage.methods.generators.diffusion import DiffusionFinetune
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.entropy import InsecureRandomForTests, Random, SecretRandom
from privimage.privacy.gradients.full_precision import full_float32
from privimage.privacy.mechanisms import DPSGDMechanism

NewDenoiser = Callable[..., Denoiser]
IMAGES = 48
CONFIG = DiffusionFinetune(noise_samples=2, learning_rate=1e-3, ema_decay=0.5, label_dropout=0.1)
MECHANISM = DPSGDMechanism(
    num_images=IMAGES,
    expected_batch_size=12,
    num_steps=4,
    restart_allowance=3,
    max_grad_norm=0.5,
    noise_multiplier=1.0,
)


def bars() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.arange(IMAGES) % 2
    images = np.zeros((IMAGES, 1, 8, 8), dtype=np.uint8)
    images[labels == 0, :, 3:5] = 255
    images[labels == 1, :, :, 3:5] = 255
    return images, labels


def begin(denoiser: Denoiser) -> FinetuneState:
    return start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()})


def run(
    denoiser: Denoiser,
    *,
    mechanism: DPSGDMechanism = MECHANISM,
    config: DiffusionFinetune = CONFIG,
    state: FinetuneState | None = None,
    random: Random | None = None,
    on_step: Callable[[FinetuneState], None] = lambda state: None,
    **settings: Any,
) -> FinetuneState:
    return finetune(
        denoiser,
        *bars(),
        mechanism,
        config,
        state=state or begin(denoiser),
        random=random or SecretRandom(),
        on_step=on_step,
        **settings,
    )


class Recorder:
    """Records what is drawn from it."""

    guarantee = True

    def __init__(self) -> None:
        self.inner = SecretRandom()
        self.drawn: list[tuple[str, int]] = []

    def uniform(self, count: int) -> NDArray[np.float64]:
        self.drawn.append(("uniform", count))
        return self.inner.uniform(count)

    def normal(self, count: int) -> NDArray[np.float64]:
        self.drawn.append(("normal", count))
        return self.inner.normal(count)

    def seed(self) -> int:
        self.drawn.append(("seed", 1))
        return self.inner.seed()


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


@pytest.mark.parametrize("rows_at_once", [1, 1000])
def test_each_step_draws_one_coin_an_image_and_noise_for_every_parameter_and_no_step_too_many(
    awake: NewDenoiser, rows_at_once: int
) -> None:
    denoiser, random = awake(), Recorder()
    state = run(denoiser, random=random, compute=ComputeSettings(rows_at_once=rows_at_once))
    size = sum(parameter.numel() for parameter in denoiser.parameters())
    assert random.drawn == [("uniform", IMAGES), ("seed", 1), ("normal", size)] * 4
    assert state.step == MECHANISM.num_steps


def test_a_resumed_run_makes_the_missing_steps_only(awake: NewDenoiser) -> None:
    denoiser = awake()
    saved: list[FinetuneState] = []
    run(denoiser, on_step=lambda state: saved.append(copy.deepcopy(state)))
    steps: list[int] = []
    random = Recorder()
    state = run(denoiser, state=saved[2], random=random, on_step=lambda state: steps.append(state.step))
    assert steps == [4] and state.step == 4
    assert len(random.drawn) == 3
    assert not torch.equal(flat(state.weights), flat(saved[3].weights)), "the repeated step has fresh noise"


def test_a_resumed_run_begins_where_the_saved_state_stands(awake: NewDenoiser) -> None:
    denoiser, random = awake(), InsecureRandomForTests(0)
    saved: list[tuple[FinetuneState, InsecureRandomForTests]] = []
    whole = run(
        denoiser, random=random, on_step=lambda state: saved.append((copy.deepcopy(state), copy.deepcopy(random)))
    )
    state, same_draws = saved[1]
    resumed = run(awake(seed=7), state=state, random=same_draws)
    for group in ("weights", "ema", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(flat(getattr(resumed, group)), flat(getattr(whole, group)), rtol=0, atol=0)


def test_the_state_holds_released_tensors_only_and_no_generator(awake: NewDenoiser) -> None:
    denoiser = awake()
    given: list[FinetuneState] = []
    run(denoiser, on_step=given.append)
    shapes = {name: parameter.shape for name, parameter in denoiser.named_parameters()}
    assert {field.name for field in fields(given[0])} == {"step", "weights", "ema", "exp_avg", "exp_avg_sq"}
    for group in ("weights", "ema", "exp_avg", "exp_avg_sq"):
        assert {name: tensor.shape for name, tensor in getattr(given[0], group).items()} == shapes
    assert isinstance(given[0].step, int)


def test_the_denoiser_and_the_starting_weights_are_left_as_they_were(awake: NewDenoiser) -> None:
    denoiser = awake()
    before, start = flat(dict(denoiser.named_parameters())).clone(), begin(denoiser)
    state = run(denoiser, state=start)
    assert torch.equal(flat(dict(denoiser.named_parameters())), before)
    assert not torch.equal(flat(state.weights), before)


def test_an_empty_batch_takes_its_noisy_step(awake: NewDenoiser) -> None:
    class NeverSampled(Recorder):
        def uniform(self, count: int) -> NDArray[np.float64]:
            return np.full(count, 1 - 1e-9)

    denoiser = awake()
    state = run(denoiser, random=NeverSampled(), mechanism=replace(MECHANISM, num_steps=1))
    noise = flat(state.exp_avg) / 0.1 * MECHANISM.expected_batch_size / MECHANISM.noise_stddev
    assert state.step == 1
    assert float(noise.std()) == pytest.approx(1.0, abs=7 / (2 * len(noise)) ** 0.5)


def test_one_step_is_adam_on_the_noisy_mean_gradient(awake: NewDenoiser) -> None:
    denoiser = awake()
    parameters = [parameter.detach().clone().requires_grad_() for parameter in denoiser.parameters()]
    adam = torch.optim.Adam(parameters, lr=CONFIG.learning_rate, eps=1e-12)
    before: list[FinetuneState] = [begin(denoiser)]

    def compare(state: FinetuneState) -> None:
        previous = before.pop()
        for parameter, name in zip(parameters, state.weights, strict=True):
            parameter.grad = (state.exp_avg[name] - 0.9 * previous.exp_avg[name]) / 0.1
        adam.step()
        expected = torch.cat([parameter.detach().flatten() for parameter in parameters])
        torch.testing.assert_close(flat(state.weights), expected, rtol=1e-4, atol=2e-5)
        before.append(copy.deepcopy(state))

    run(denoiser, on_step=compare)


@pytest.mark.parametrize("draws", [1, 8])
def test_one_image_moves_the_released_gradient_by_its_bound_however_many_noise_draws_it_has(
    awake: NewDenoiser, draws: int
) -> None:
    denoiser = awake()
    images, labels = bars()
    alone = replace(
        MECHANISM, num_images=1, expected_batch_size=1, num_steps=1, max_grad_norm=1e-4, noise_multiplier=1e-9
    )
    state = finetune(
        denoiser,
        images[:1],
        labels[:1],
        alone,
        CONFIG.model_copy(update={"noise_samples": draws}),
        state=begin(denoiser),
        random=SecretRandom(),
        on_step=lambda state: None,
    )
    released = flat(state.exp_avg) / 0.1
    assert 0.999e-4 <= float(released.double().norm()) <= 1.00001e-4


def test_the_average_is_one_of_the_released_weights(awake: NewDenoiser) -> None:
    denoiser = awake()
    expected = flat(begin(denoiser).ema)

    def compare(state: FinetuneState) -> None:
        nonlocal expected
        decay = min(CONFIG.ema_decay, (1 + state.step) / (10 + state.step))
        expected = decay * expected + (1 - decay) * flat(state.weights)
        torch.testing.assert_close(flat(state.ema), expected, rtol=0, atol=1e-6)

    run(denoiser, on_step=compare)


def test_a_state_whose_tensors_lie_in_another_order_goes_on_the_same(awake: NewDenoiser) -> None:
    """As after a checkpoint: its format does not keep the order."""
    denoiser = awake()
    usual = begin(denoiser)
    shuffled = replace(
        usual,
        **{
            group: dict(reversed(getattr(usual, group).items()))
            for group in ("weights", "ema", "exp_avg", "exp_avg_sq")
        },
    )
    one, other = (run(denoiser, state=state, random=InsecureRandomForTests(4)) for state in (usual, shuffled))
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_two_runs_share_no_noise(awake: NewDenoiser) -> None:
    denoiser = awake()
    quiet = replace(MECHANISM, num_steps=1, noise_multiplier=1000.0)
    first, second = (flat(run(denoiser, mechanism=quiet).exp_avg) for _ in range(2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 7 / len(first) ** 0.5


@pytest.mark.parametrize(
    "compute",
    [
        ComputeSettings(rows_at_once=1),
        ComputeSettings(rows_at_once=7),
        ComputeSettings(backend="vmap"),
        ComputeSettings(backend="opacus"),
    ],
)
def test_how_the_gradients_are_computed_changes_nothing_beyond_rounding(
    awake: NewDenoiser, compute: ComputeSettings
) -> None:
    denoiser = awake()
    one = replace(MECHANISM, num_steps=1, expected_batch_size=IMAGES, noise_multiplier=1e-9)
    usual, other = (
        flat(run(denoiser, mechanism=one, random=InsecureRandomForTests(4), compute=chosen).exp_avg)
        for chosen in (ComputeSettings(), compute)
    )
    assert float((usual - other).norm() / usual.norm()) <= 1e-6


def test_with_little_noise_it_learns(awake: NewDenoiser) -> None:
    denoiser = awake()
    images, labels = bars()
    generator = torch.Generator().manual_seed(0)
    x = from_pixels(torch.from_numpy(images))
    noise, sigma = torch.randn(x.shape, generator=generator), torch.full((IMAGES,), 0.5)

    def loss(weights: dict[str, torch.Tensor]) -> float:
        probe = awake()
        probe.load_state_dict(weights)
        with torch.no_grad():
            return float(probe.loss(x, noise, sigma, torch.from_numpy(labels)).mean())

    before = loss(begin(denoiser).weights)
    easy = replace(MECHANISM, num_steps=40, noise_multiplier=0.01)
    config = CONFIG.model_copy(update={"learning_rate": 3e-3, "ema_decay": 0.8})
    state = run(denoiser, mechanism=easy, config=config, random=InsecureRandomForTests(0))
    assert loss(state.weights) < 0.6 * before
    assert loss(state.ema) < 0.6 * before
    loud = replace(easy, noise_multiplier=1e4)
    drowned = run(denoiser, mechanism=loud, config=config, random=InsecureRandomForTests(0))
    assert loss(drowned.weights) > 2 * loss(state.weights), "noise has no effect on learning: is it added at all?"


@pytest.mark.parametrize("num_images", [IMAGES - 1, IMAGES + 1])
def test_another_number_of_images_than_is_accounted_is_refused(awake: NewDenoiser, num_images: int) -> None:
    random = Recorder()
    with pytest.raises(ConfigError, match="number of images is not the one that the mechanism accounts for"):
        run(awake(), mechanism=replace(MECHANISM, num_images=num_images), random=random)
    assert random.drawn == []


def test_a_layer_that_mixes_images_is_refused_before_anything_is_drawn(awake: NewDenoiser) -> None:
    denoiser, random = awake(), Recorder()
    denoiser.net.norm_out = nn.BatchNorm2d(8)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"net\.norm_out \(BatchNorm2d\) mixes images; use GroupNorm"):
        run(denoiser, random=random)
    assert random.drawn == []


def rows_of(config: DiffusionFinetune, seed: int = 1) -> list[torch.Tensor]:
    images, labels = (torch.from_numpy(array) for array in bars())
    return list(noise_rows(images, labels, 2, config, torch.Generator().manual_seed(seed)))


def test_labels_are_hidden_once_an_image_and_noise_drawn_for_each_draw() -> None:
    config = CONFIG.model_copy(update={"noise_samples": 3, "label_dropout": 0.5})
    x, noise, sigma, shown = rows_of(config)
    assert x.shape == noise.shape == (3 * IMAGES, 1, 8, 8)
    assert shown.shape == sigma.shape == (3 * IMAGES,)
    of_image = shown.view(IMAGES, 3)
    assert bool((of_image == of_image[:, :1]).all())
    assert 10 < int((of_image[:, 0] == 2).sum()) < 38
    assert all(int(label) in (2, expected) for label, expected in zip(of_image[:, 0], bars()[1], strict=True))
    assert len(sigma.unique()) == 3 * IMAGES and len(noise.unique()) > 0.99 * noise.numel()


def test_each_draw_of_an_image_is_mirrored_by_a_coin_of_its_own_where_asked_for() -> None:
    asymmetric = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    asymmetric[..., 0] = 255
    for flip in (False, True):
        config = CONFIG.model_copy(update={"noise_samples": 4, "horizontal_flip": flip})
        x = noise_rows(asymmetric, torch.zeros(64, dtype=torch.int64), 2, config, torch.Generator().manual_seed(0))[0]
        mirrored = (x[:, 0, 0, 7] > 0).view(64, 4).sum(1)
        assert x[..., 1:7].eq(-1).all()
        if flip:
            assert 90 < int(mirrored.sum()) < 166 and {1, 2, 3} <= set(mirrored.tolist())
        else:
            assert not mirrored.any()


def test_sums_are_computed_in_whole_float32_whatever_was_switched_on_outside(awake: NewDenoiser) -> None:
    seen: set[tuple[str, bool]] = set()
    denoiser = awake()
    work = PrivateSum(
        generator=denoiser,
        config=DiffusionFinetune(noise_samples=1),
        max_grad_norm=1.0,
        compute=ComputeSettings(rows_at_once=4),
    )
    work.to(torch.device("cpu"))
    real = work._engine

    class Watched:
        def clipped_sum(self, *arguments: Any, **options: Any) -> ClippedSum:
            seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return real.clipped_sum(*arguments, **options)

    work._engine = Watched()  # type: ignore[assignment]
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        images, labels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
        weights = torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])
        work.share(weights, {"images": images, "labels": labels, "seed": torch.zeros(1, dtype=torch.int64)}, 0, 1)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert seen == {("highest", False)}


def test_a_variable_that_forces_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    with pytest.raises(ConfigError, match="TF32"), full_float32():
        pass
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0")
    with full_float32():
        pass
