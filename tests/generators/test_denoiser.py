"""EDM's preconditioning and loss, against the paper's identities and a loss written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from privimage.data.pixels import from_pixels, to_pixels
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.private_sum import PrivateSum
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune

SIGMAS = torch.tensor([0.002, 0.05, 0.3, 0.5, 1.7, 20.0, 80.0], dtype=torch.float64)
NewDenoiser = Callable[..., Denoiser]


def draws(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = 2 * torch.rand(count, channels, size, size, generator=generator) - 1
    noise = torch.randn(images.shape, generator=generator)
    sigma = torch.exp(1.2 * torch.randn(count, generator=generator) - 1.2)
    return images, noise, sigma, torch.randint(0, 3, (count,), generator=generator)


def test_every_pixel_value_survives_the_way_to_floats_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = from_pixels(pixels)
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    assert torch.equal(to_pixels(floats), pixels)
    assert torch.equal(to_pixels(floats + 0.4 / 127.5), pixels)


def test_floats_out_of_range_are_clamped_not_wrapped() -> None:
    assert to_pixels(torch.tensor([[[[-7.0, -1.001, 1.001, 7.0]]]])).flatten().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("sigma_data", [0.5, 0.29, 1.3])
def test_network_input_and_target_have_unit_variance_at_every_noise_level(
    awake: NewDenoiser, sigma_data: float
) -> None:
    c_skip, c_out, c_in, c_noise = awake(sigma_data=sigma_data).scalings(SIGMAS)
    one = torch.ones_like(SIGMAS)
    # Images of variance sigma_data^2 and independent noise of variance sigma^2: Karras et al. (2022), Eq. 114 and 115.
    torch.testing.assert_close(c_in**2 * (sigma_data**2 + SIGMAS**2), one)
    torch.testing.assert_close(((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * SIGMAS**2) / c_out**2, one)
    torch.testing.assert_close(c_noise, SIGMAS.log() / 4)


def test_the_skip_weight_is_the_one_that_amplifies_errors_least(awake: NewDenoiser) -> None:
    c_skip, c_out, _, _ = awake().scalings(SIGMAS)
    for shift in (-0.01, 0.01):
        assert (((1 - c_skip - shift) * 0.5) ** 2 + ((c_skip + shift) * SIGMAS) ** 2 > c_out**2).all()


def test_the_loss_is_the_one_of_the_paper_written_out(awake: NewDenoiser) -> None:
    denoiser = awake()
    images, noise, sigma, labels = draws(5)
    expected = []
    for row in range(5):
        s = sigma[row]
        weight = (s**2 + 0.5**2) / (s * 0.5) ** 2
        denoised = denoiser((images[row] + s * noise[row])[None], s[None], labels[row][None])[0]
        expected.append(weight * ((denoised - images[row]) ** 2).mean())
    torch.testing.assert_close(denoiser.loss(images, noise, sigma, labels), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_fine_tuning_and_pre_training_have_the_same_loss(awake: NewDenoiser) -> None:
    denoiser = awake()
    work = PrivateSum(generator=denoiser, config=DiffusionFinetune(), max_grad_norm=1.0, compute=ComputeSettings())
    rows = draws(6)
    torch.testing.assert_close(work.generator.private_loss(denoiser, *rows), denoiser.loss(*rows))


def test_a_new_denoiser_predicts_the_skip_and_has_a_loss_of_about_one() -> None:
    denoiser = new_denoiser(DenoiserConfig(base_channels=8), channels=1, num_classes=2, seed=0)
    images, noise, sigma, labels = draws(512)
    images = images * 0.5 / images.std()
    c_skip, _, _, _ = denoiser.scalings(sigma)
    noised = images + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(denoiser(noised, sigma, labels), c_skip.view(-1, 1, 1, 1) * noised)
    assert float(denoiser.loss(images, noise, sigma, labels).detach().mean()) == pytest.approx(1.0, rel=0.05)


def test_one_seed_gives_one_denoiser_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        new_denoiser(DenoiserConfig(base_channels=8), channels=1, num_classes=2, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_label_and_noise_level_reach_the_output(awake: NewDenoiser) -> None:
    denoiser = awake()
    images, noise, sigma, _ = draws(2)
    noised = images + sigma.view(-1, 1, 1, 1) * noise
    outputs = [denoiser(noised, sigma, torch.full((2,), label)) for label in (0, 1, 2)]
    assert all(float((one - other).detach().abs().max()) > 1e-3 for one, other in pairwise(outputs))
    assert (
        float((denoiser(noised, 2 * sigma, torch.zeros(2, dtype=torch.long)) - outputs[0]).detach().abs().max()) > 1e-3
    )
