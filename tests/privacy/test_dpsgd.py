"""One step of DP-SGD: noise of the accounted scale, always, fresh, and divided by a public number."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, norm

from privimage.errors import PrivacyRefused
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.training.finetune import FinetuneState, finetune, start_state
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.dpsgd import noisy_mean_gradient, noisy_points
from privimage.privacy.entropy import InsecureRandomForTests, Random, SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.privacy.numerics import MOST_DRAWS, PER_STDDEV

ALARM = 1e-9
SIZE = 200_000
MECHANISM = DPSGDMechanism(
    num_images=1000,
    expected_batch_size=40,
    num_steps=10,
    restart_allowance=0,
    max_grad_norm=0.01,
    noise_multiplier=2.5,
)


def clipped(value: torch.Tensor) -> ClippedSum:
    return ClippedSum(value=value, max_grad_norm=MECHANISM.max_grad_norm)


def noise_in_units_of_the_accounted(value: torch.Tensor) -> torch.Tensor:
    released = noisy_mean_gradient(clipped(value), MECHANISM, SecretRandom())
    accounted = MECHANISM.event.event.event.noise_multiplier * MECHANISM.max_grad_norm
    return (released * MECHANISM.expected_batch_size - value) / accounted


@pytest.mark.parametrize("batch", ["empty", "some"])
def test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch(batch: str) -> None:
    value = torch.zeros(SIZE) if batch == "empty" else torch.linspace(-1e-4, 1e-4, SIZE)
    noise = noise_in_units_of_the_accounted(value).numpy()
    assert kstest(noise, "norm").pvalue > ALARM
    assert kstest(noise * 2 / 3, "norm").pvalue < ALARM
    assert kstest(noise * 3 / 2, "norm").pvalue < ALARM


def test_two_steps_share_no_noise() -> None:
    random = SecretRandom()
    first, second = (noisy_mean_gradient(clipped(torch.zeros(SIZE)), MECHANISM, random) for _ in range(2))
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(float(correlation)) < 7 / SIZE**0.5
    assert float((first - second).std() / first.std()) == pytest.approx(2**0.5, rel=0.02)


def test_no_two_coordinates_share_noise() -> None:
    noise = noise_in_units_of_the_accounted(torch.zeros(SIZE))
    # First of all they differ: one draw for all of them has no correlation if it happens to be a small one.
    assert abs(float(noise.std()) - 1) < 7 / (2 * SIZE) ** 0.5
    for lag in (1, SIZE // 2):
        assert abs(float((noise[:-lag] * noise[lag:]).mean())) < 7 / (SIZE - lag) ** 0.5


def test_the_divisor_is_the_expected_batch_size_whatever_the_batch_was() -> None:
    value = torch.linspace(-0.3, 0.3, 50)
    noise = torch.from_numpy(InsecureRandomForTests(3).normal(50)).float()
    for batch in (torch.zeros(50), value, 10 * value):
        released = noisy_mean_gradient(clipped(batch), MECHANISM, InsecureRandomForTests(3))
        half_a_point = 0.025 / PER_STDDEV / 40 / 2
        torch.testing.assert_close(released, (batch + 0.025 * noise) / 40, atol=1.001 * half_a_point, rtol=0)


def test_a_sum_clipped_to_another_norm_than_is_accounted_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match=r"sensitivity 0\.01, the accounted mechanism 0\.005"):
        noisy_mean_gradient(clipped(torch.zeros(3)), replace(MECHANISM, max_grad_norm=0.005), SecretRandom())


def points_of(released: torch.Tensor, mechanism: DPSGDMechanism) -> np.ndarray:
    """Which lattice points were released, as whole numbers; an assertion that nothing else was."""
    unit = mechanism.noise_stddev / PER_STDDEV / mechanism.expected_batch_size
    points = np.rint(released.double().numpy() / unit)
    assert (released.numpy() == (points * unit).astype(np.float32)).all(), "off the lattice"
    return points


ALONE = replace(MECHANISM, num_images=1, expected_batch_size=1, max_grad_norm=0.73, noise_multiplier=1.0)


def test_which_numbers_can_occur_does_not_tell_whether_an_image_was_there() -> None:
    """Float noise on a float sum told it: of a sum of `max_grad_norm`, one number in eight could not come of a sum of 0."""
    for sum_ in (torch.zeros(SIZE), torch.full((SIZE,), 0.73), torch.full((SIZE,), -0.73), torch.full((SIZE,), 1e-3)):
        released = noisy_mean_gradient(ClippedSum(value=sum_, max_grad_norm=0.73), ALONE, SecretRandom())
        points_of(released, ALONE)
    # The same check finds what was done before.
    noise = torch.from_numpy(SecretRandom().normal(SIZE)).float()
    with pytest.raises(AssertionError, match="off the lattice"):
        points_of(torch.full((SIZE,), 0.73) + 0.73 * noise, ALONE)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, -7.3])
def test_every_lattice_point_is_as_likely_as_a_rounded_gaussian_has_it(share: float) -> None:
    """Pearson's test against the exact probabilities; noise of 1 % less fails it."""
    count = 2_000_000
    value = torch.full((count,), share * 0.73)
    released = noisy_mean_gradient(ClippedSum(value=value, max_grad_norm=0.73), ALONE, SecretRandom())
    centre = float(value[0]) / ALONE.noise_stddev
    edges = (np.arange(round((centre - 4) * PER_STDDEV), round((centre + 4) * PER_STDDEV)) - 0.5) / PER_STDDEV
    points = points_of(released, ALONE) / PER_STDDEV
    assert abs(points.mean() - centre) < 7 / count**0.5
    found = np.histogram(points, bins=np.concatenate([[-np.inf], edges, [np.inf]]))[0]

    def p_value(noise: float) -> float:
        below = norm.cdf(edges, loc=centre, scale=noise)
        expected = count * np.diff(np.concatenate([[0.0], below, [1.0]]))
        return float(chi2.sf(((found - expected) ** 2 / expected).sum(), len(expected) - 1))

    assert p_value(1.0) > ALARM
    assert p_value(0.99) < ALARM and p_value(1.01) < ALARM


def test_the_noise_is_added_to_the_fraction_of_a_sum_however_large_its_whole_part_is() -> None:
    """In float64, 2^47 + a fraction keeps 5 bits of it; what is added must not be rounded with the whole."""
    normal = SecretRandom().normal(1000)
    small = noisy_points(np.full(1000, 0.25, dtype=np.float32), 1.0, normal)
    large = noisy_points(np.full(1000, 2.0**47 + 2.0**24, dtype=np.float32), 1.0, normal)
    assert (noisy_points(np.full(1000, 0.0, dtype=np.float32), 1.0, normal) == large - 2.0**47 - 2.0**24).all()
    assert (small == np.rint(0.25 + PER_STDDEV * normal)).all()


def test_more_numbers_than_the_bounds_on_rounding_hold_for_are_refused() -> None:
    endless = replace(MECHANISM, num_steps=MOST_DRAWS // 3)
    noisy_mean_gradient(clipped(torch.zeros(3)), endless, SecretRandom())
    for more in (replace(endless, restart_allowance=3), replace(endless, num_steps=MOST_DRAWS // 3 + 1)):
        with pytest.raises(PrivacyRefused, match=r"the bounds on rounding allow .* fewer steps, or a smaller network"):
            noisy_mean_gradient(clipped(torch.zeros(3)), more, SecretRandom())


# ------------------------------------------------------------------------- the noise of whole calls of `finetune`

QUIET = replace(MECHANISM, num_images=2, expected_batch_size=1, num_steps=40, max_grad_norm=1e-3, noise_multiplier=1e4)
"""So much noise that the gradients are nothing beside it: what is released is the noise."""


def new_small_denoiser() -> Denoiser:
    return new_denoiser(DenoiserConfig(base_channels=8, channel_multipliers=(1,)), channels=1, num_classes=2, seed=0)


def saved_after_two_steps() -> FinetuneState:
    """A state such as a checkpoint holds."""
    return replace(start_state({n: t.detach() for n, t in new_small_denoiser().named_parameters()}), step=2)


def noise_of_a_run(
    random: Random, start: FinetuneState | None = None, num_steps: int = QUIET.num_steps
) -> list[dict[str, torch.Tensor]]:
    """Fine-tune; per step and tensor, what was released, in units of the accounted noise."""
    denoiser = new_small_denoiser()
    mechanism = replace(QUIET, num_steps=num_steps)
    accounted = mechanism.event.event.event.noise_multiplier * mechanism.max_grad_norm
    before = start or start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()})
    moments = [before.exp_avg]
    noise = []

    def on_step(state: FinetuneState) -> None:
        released = {name: (now - 0.9 * moments[-1][name]) / 0.1 for name, now in state.exp_avg.items()}
        noise.append({name: tensor * mechanism.expected_batch_size / accounted for name, tensor in released.items()})
        moments.append(copy.deepcopy(state.exp_avg))

    images = np.random.default_rng(0).integers(0, 256, (QUIET.num_images, 1, 8, 8), dtype=np.uint8)
    finetune(
        denoiser,
        images,
        np.arange(QUIET.num_images) % 2,
        mechanism,
        DiffusionFinetune(noise_samples=1),
        state=copy.deepcopy(before),
        random=random,
        on_step=on_step,
    )
    return noise


@pytest.fixture(scope="module")
def noise() -> list[dict[str, torch.Tensor]]:
    return noise_of_a_run(SecretRandom())


def of_unit_variance(draws: torch.Tensor) -> bool:
    """Two-sided chi-square test at ALARM."""
    total = float((draws.double() ** 2).sum())
    return bool(min(chi2.cdf(total, draws.numel()), chi2.sf(total, draws.numel())) > ALARM)


def test_every_tensor_gets_noise_of_the_accounted_scale_and_no_other(noise: list[dict[str, torch.Tensor]]) -> None:
    for name in noise[0]:
        draws = torch.cat([step[name].flatten() for step in noise])
        assert of_unit_variance(draws), name
        if len(draws) >= 320:  # fewer cannot tell at this level of certainty
            assert not of_unit_variance(draws * 2 / 3) and not of_unit_variance(draws * 3 / 2), name
        assert abs(float(draws.mean())) < 7 / len(draws) ** 0.5, name
    together = torch.cat([tensor.flatten() for step in noise for tensor in step.values()]).numpy()[:SIZE]
    assert kstest(together, "norm").pvalue > ALARM
    assert kstest(together * 2 / 3, "norm").pvalue < ALARM
    assert kstest(together * 3 / 2, "norm").pvalue < ALARM


def unrelated(noise: list[dict[str, torch.Tensor]]) -> bool:
    """No two of them correlate, as wholes or moved against each other by one coordinate."""
    rows = torch.stack([torch.cat([tensor.flatten() for tensor in step.values()]) for step in noise]).double()
    count = rows.shape[1]
    products = torch.cat([rows @ rows.T, rows[:, 1:] @ rows[:, :-1].T], dim=1) / count**0.5
    products[:, : len(rows)].fill_diagonal_(0)
    return bool((products.abs() < 7).all())


def test_no_two_steps_share_noise_nor_do_two_attempts_of_one_step() -> None:
    first = noise_of_a_run(SecretRandom(), num_steps=4)
    state = saved_after_two_steps()
    again = noise_of_a_run(SecretRandom(), start=state, num_steps=4)
    assert len(first) == 4 and len(again) == 2
    assert unrelated([*first, *again])
    # The same check finds attempts that repeat their noise, and steps that do.
    repeated = [noise_of_a_run(InsecureRandomForTests(0), start=state, num_steps=4) for _ in range(2)]
    assert unrelated(repeated[0])
    assert not unrelated([*repeated[0], *repeated[1]])
    assert not unrelated([first[0], first[0]])
