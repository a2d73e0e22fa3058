"""The sampler: the paper's noise levels, the exact answer where there is one, and images that depend on their seed only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from privimage.config import SynthesizeConfig
from privimage.generators.denoiser import Denoiser
from privimage.generators.sampler import guided, initial_noise, sample_heun, sigma_schedule, synthesize_images

NewDenoiser = Callable[..., Denoiser]
MEAN, SPREAD = 0.3, 0.4
SHAPE = (1, 8, 8)


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(noise: Tensor, sigma_max: float) -> Tensor:
    """Where the probability-flow ODE carries sigma_max * noise for that denoiser."""
    return MEAN + (sigma_max * noise - MEAN) * SPREAD / (SPREAD**2 + sigma_max**2) ** 0.5


def test_noise_levels_are_those_of_the_paper() -> None:
    sigmas = sigma_schedule(18, 0.002, 80.0, 7.0)
    assert sigmas.shape == (19,) and sigmas.dtype == torch.float32
    assert float(sigmas[0]) == pytest.approx(80.0) and float(sigmas[-2]) == pytest.approx(0.002)
    assert float(sigmas[-1]) == 0.0
    assert (sigmas[1:] < sigmas[:-1]).all()
    expected = (80.0 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    assert float(sigmas[5]) == pytest.approx(expected)


def test_the_ode_of_a_gaussian_is_solved_with_second_order() -> None:
    noise = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(num_steps: int) -> float:
        sigmas = sigma_schedule(num_steps, 0.002, 20.0, 7.0).double()
        return float((sample_heun(gaussian_denoiser, noise, sigmas) - exact(noise, 20.0)).abs().max())

    coarse, fine = error(32), error(64)
    assert fine < 0.01
    assert coarse / fine > 3, "halving the steps of a second-order method divides the error by about four"


def test_samples_of_a_gaussian_have_its_mean_and_spread() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    samples = sample_heun(gaussian_denoiser, noise, sigma_schedule(40, 0.002, 80.0, 7.0))
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(samples.std()) == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("num_steps", [2, 5, 18])
def test_the_denoiser_is_asked_twice_a_step_but_the_last(num_steps: int) -> None:
    asked: list[float] = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return gaussian_denoiser(x, sigma)

    sample_heun(counting, torch.zeros(1), sigma_schedule(num_steps, 0.01, 10.0, 7.0))
    assert len(asked) == 2 * num_steps - 1
    assert min(asked) > 0


def test_noise_of_an_image_depends_on_its_seed_only() -> None:
    whole = initial_noise(torch.tensor([5, 6, 2**40, 7]), (3, 4, 4))
    assert torch.equal(whole[2:], initial_noise(torch.tensor([2**40, 7]), (3, 4, 4)))
    assert torch.equal(whole[[0]], initial_noise(torch.tensor([5]), (3, 4, 4)))
    assert not torch.equal(whole[0], whole[1])
    high = initial_noise(torch.tensor([5, 5 + 2**32, 5 + 2**62]), (3, 4, 4))
    assert len({tuple(noise.flatten().tolist()) for noise in high}) == 3, "the upper bits of a seed count too"
    assert float(initial_noise(torch.arange(500), (1, 8, 8)).std()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_the_batch_an_image_is_made_in_does_not_change_it(awake: NewDenoiser, guidance: float) -> None:
    denoiser = awake(attention_levels=(1,))
    config = SynthesizeConfig(num_steps=5, guidance=guidance)
    labels, seeds = torch.tensor([0, 1, 0, 1, 0]), torch.arange(5)
    whole = synthesize_images(denoiser, labels, seeds, SHAPE, config)
    parts = torch.cat(
        [synthesize_images(denoiser, labels[rows], seeds[rows], SHAPE, config) for rows in torch.arange(5).split(2)]
    )
    assert whole.shape == (5, *SHAPE) and whole.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 5
    # Kernels may add in another order for another batch size: a pixel at the edge of rounding may move by one level.
    assert int((whole.int() - parts.int()).abs().max()) <= 1
    assert int((whole != parts).sum()) <= 2
    turned = torch.arange(4, -1, -1)
    again = synthesize_images(denoiser, labels[turned], seeds[turned], SHAPE, config)[turned]
    assert int((whole.int() - again.int()).abs().max()) <= 1


def test_sampling_repeats_itself_and_follows_seed_and_label(awake: NewDenoiser) -> None:
    denoiser, config = awake(), SynthesizeConfig(num_steps=5)
    before = torch.get_rng_state()
    one = synthesize_images(denoiser, torch.tensor([0]), torch.tensor([3]), SHAPE, config)
    assert torch.equal(one, synthesize_images(denoiser, torch.tensor([0]), torch.tensor([3]), SHAPE, config))
    assert not torch.equal(one, synthesize_images(denoiser, torch.tensor([0]), torch.tensor([4]), SHAPE, config))
    assert not torch.equal(one, synthesize_images(denoiser, torch.tensor([1]), torch.tensor([3]), SHAPE, config))
    assert torch.equal(before, torch.get_rng_state())


def test_no_guidance_is_the_plain_denoiser_and_guidance_moves_away_from_no_label(awake: NewDenoiser) -> None:
    denoiser = awake(num_classes=2)
    noised, sigma, labels = initial_noise(torch.arange(3), SHAPE), torch.tensor(0.7), torch.tensor([0, 1, 1])
    with torch.no_grad():
        plain = denoiser(noised, sigma.expand(3), labels)
        none = denoiser(noised, sigma.expand(3), torch.tensor([2, 2, 2]))
        assert torch.equal(guided(denoiser, labels, 0.0)(noised, sigma), plain)
        torch.testing.assert_close(guided(denoiser, labels, 2.0)(noised, sigma), plain + 2 * (plain - none))
    assert float((plain - none).abs().max()) > 1e-3
