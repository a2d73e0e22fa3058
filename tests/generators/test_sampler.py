"""The sampler: the paper's noise levels, the exact answer where there is one, and images that depend on their seed only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.diffusion.solver import guided, sample_multistep, sigma_schedule
from privimage.generators.sampling.sampler import initial_noise, synthesize_images
from privimage.methods.generators.diffusion import DiffusionSampling

NewDenoiser = Callable[..., Denoiser]
MEAN, SPREAD = 0.3, 0.4
SHAPE = (1, 8, 8)


def gaussian_denoiser(x: Tensor, sigma: float) -> Tensor:
    """The ideal denoiser of N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """What that denoiser says where the probability-flow ODE carries sigmas[0] * noise, at the last of the levels."""
    shrunk = ((SPREAD**2 + sigmas[-1] ** 2) / (SPREAD**2 + sigmas[0] ** 2)) ** 0.5
    return gaussian_denoiser(MEAN + (sigmas[0] * noise - MEAN) * shrunk, sigmas[-1])


def euler(denoise: Callable[[Tensor, float], Tensor], noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The same sampler without its memory, which is of first order."""
    x = noise * sigmas[0]
    for sigma, following in pairwise(sigmas):
        x = following / sigma * x + (1 - following / sigma) * denoise(x, sigma)
    return denoise(x, sigmas[-1])


def orders(sampler: Callable[..., Tensor]) -> list[float]:
    """By how much doubling the steps divides the error, for 16, 32 and 64 of them."""
    noise = torch.linspace(-3, 3, 101, dtype=torch.float64)

    def error(num_steps: int) -> float:
        sigmas = sigma_schedule(num_steps, 0.02, 20.0, 7.0)
        return float((sampler(gaussian_denoiser, noise, sigmas) - exact(noise, sigmas)).abs().max())

    errors = [error(num_steps) for num_steps in (16, 32, 64, 128)]
    assert errors[-1] < errors[0] / 4
    return [coarse / fine for coarse, fine in pairwise(errors)]


def test_noise_levels_are_those_of_the_paper() -> None:
    sigmas = sigma_schedule(18, 0.002, 80.0, 7.0)
    assert len(sigmas) == 18
    assert sigmas[0] == pytest.approx(80.0) and sigmas[-1] == pytest.approx(0.002)
    assert all(following < sigma for sigma, following in pairwise(sigmas))
    assert sigmas[5] == pytest.approx((80.0 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7)


def test_the_ode_of_a_gaussian_is_solved_with_second_order() -> None:
    assert min(orders(sample_multistep)) > 3.3, "doubling the steps of a second-order method divides the error by four"


def test_a_solver_of_first_order_would_be_found_out() -> None:
    assert max(orders(euler)) < 2.4


def test_samples_of_a_gaussian_have_its_mean_and_spread() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    samples = sample_multistep(gaussian_denoiser, noise, sigma_schedule(40, 0.002, 80.0, 7.0))
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(samples.std()) == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("num_steps", [2, 5, 18])
def test_the_denoiser_is_asked_once_at_each_noise_level(num_steps: int) -> None:
    asked: list[float] = []

    def counting(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return gaussian_denoiser(x, sigma)

    sigmas = sigma_schedule(num_steps, 0.01, 10.0, 7.0)
    sample_multistep(counting, torch.zeros(1), sigmas)
    assert asked == sigmas and len(asked) == num_steps


def test_sampling_begins_with_noise_of_the_largest_level_and_ends_with_the_denoisers_last_answer() -> None:
    seen: list[Tensor] = []

    def watching(x: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 0.25 + sigma)

    noise = initial_noise(torch.arange(3), SHAPE)
    images = sample_multistep(watching, noise, [8.0, 2.0, 0.5])
    assert torch.equal(seen[0], 8.0 * noise)
    assert torch.equal(images, torch.full_like(noise, 0.75))


def test_a_denoiser_that_is_sure_of_the_image_gets_it() -> None:
    image = torch.linspace(-1, 1, 64).reshape(SHAPE)
    noise = initial_noise(torch.arange(3), SHAPE)
    assert torch.equal(sample_multistep(lambda x, sigma: image, noise, sigma_schedule(6, 0.02, 80.0, 7.0)), image)


def test_noise_of_an_image_depends_on_its_seed_only() -> None:
    whole = initial_noise(torch.tensor([5, 6, 2**40, 7]), (3, 4, 4))
    assert torch.equal(whole[2:], initial_noise(torch.tensor([2**40, 7]), (3, 4, 4)))
    assert torch.equal(whole[[0]], initial_noise(torch.tensor([5]), (3, 4, 4)))
    assert not torch.equal(whole[0], whole[1])
    high = initial_noise(torch.tensor([5, 5 + 2**32, 5 + 2**62]), (3, 4, 4))
    assert len({tuple(noise.flatten().tolist()) for noise in high}) == 3, "the upper bits of a seed count too"
    assert float(initial_noise(torch.arange(500), (1, 8, 8)).std()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_the_batch_an_image_is_made_in_does_not_change_a_bit_of_it(awake: NewDenoiser, guidance: float) -> None:
    denoiser = awake(attention_levels=(1,), base_channels=24)
    denoiser.sampling = DiffusionSampling(num_steps=2, guidance=guidance)
    labels, seeds = torch.arange(35) % 2, torch.arange(35)
    whole = synthesize_images(denoiser, labels, seeds, SHAPE)
    assert whole.shape == (35, *SHAPE) and whole.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 35
    for size in (5, 17, 32):
        parts = [synthesize_images(denoiser, labels[rows], seeds[rows], SHAPE) for rows in torch.arange(35).split(size)]
        assert torch.equal(torch.cat(parts), whole), f"in batches of {size}"
    turned = torch.arange(34, -1, -1)
    again = synthesize_images(denoiser, labels[turned], seeds[turned], SHAPE)[turned]
    assert torch.equal(again, whole)


def test_sampling_repeats_itself_and_follows_seed_and_label(awake: NewDenoiser) -> None:
    denoiser = awake()
    denoiser.sampling = DiffusionSampling(num_steps=5)
    before = torch.get_rng_state()
    one = synthesize_images(denoiser, torch.tensor([0]), torch.tensor([3]), SHAPE)
    assert torch.equal(one, synthesize_images(denoiser, torch.tensor([0]), torch.tensor([3]), SHAPE))
    assert not torch.equal(one, synthesize_images(denoiser, torch.tensor([0]), torch.tensor([4]), SHAPE))
    assert not torch.equal(one, synthesize_images(denoiser, torch.tensor([1]), torch.tensor([3]), SHAPE))
    assert torch.equal(before, torch.get_rng_state())


def test_no_guidance_is_the_plain_denoiser_and_guidance_moves_away_from_no_label(awake: NewDenoiser) -> None:
    denoiser = awake(num_classes=2)
    noised, sigma, labels = initial_noise(torch.arange(3), SHAPE), 0.7, torch.tensor([0, 1, 1])
    with torch.no_grad():
        plain = denoiser(noised, torch.full((3,), sigma), labels)
        none = denoiser(noised, torch.full((3,), sigma), torch.tensor([2, 2, 2]))
        assert torch.equal(guided(denoiser, labels, 0.0)(noised, sigma), plain)
        torch.testing.assert_close(guided(denoiser, labels, 2.0)(noised, sigma), plain + 2 * (plain - none))
    assert float((plain - none).abs().max()) > 1e-3
