"""The denoiser, a generator by diffusion: preconditioning and loss of EDM (Karras et al. 2022, arXiv:2206.00364)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from privimage.data.pixels import from_pixels
from privimage.generators.diffusion.solver import guided, sample_multistep, sigma_schedule
from privimage.generators.diffusion.unet import UNet
from privimage.generators.interface import ImageGenerator, Weights
from privimage.methods.generators.diffusion import (
    DenoiserConfig,
    DiffusionFinetune,
    DiffusionPretrain,
    DiffusionSampling,
)
from privimage.privacy.gradients import Network

__all__ = ["Denoiser", "new_denoiser", "noise_rows"]


class Denoiser(ImageGenerator[DiffusionPretrain, DiffusionFinetune]):
    """D(x; sigma, label) = c_skip x + c_out F(c_in x; c_noise, label), Eq. 7; F is the raw network."""

    def __init__(
        self, net: UNet, *, sigma_data: float, num_classes: int, sampling: DiffusionSampling | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.num_classes = num_classes
        self.sampling = sampling or DiffusionSampling()

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, c_noise of Table 1, each with the shape of `sigma`."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4

    def forward(self, noised: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """The denoised images. `noised` (batch, C, H, W); `sigma`, `labels` (batch,)."""
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        wide = (-1, 1, 1, 1)
        raw = self.net(c_in.view(wide) * noised, c_noise, labels)
        out: Tensor = c_skip.view(wide) * noised + c_out.view(wide) * raw
        return out

    def loss(
        self, images: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor, *, network: Network | None = None
    ) -> Tensor:
        """Weighted squared error per row, shape (batch,), mean over pixels; Eq. 2 with lambda = 1 / c_out^2.

        Pure: noise (standard normal, shape of images) and sigma (batch,) are arguments; nothing is drawn here.
        `network` is this denoiser with other weights.
        """
        denoised = (network or self)(images + sigma.view(-1, 1, 1, 1) * noise, sigma, labels)
        return self.weighted_error(denoised, images, sigma)

    def weighted_error(self, denoised: Tensor, images: Tensor, sigma: Tensor) -> Tensor:
        """The loss of images that were denoised already, shape (batch,)."""
        _, c_out, _, _ = self.scalings(sigma)
        return ((denoised - images) ** 2).flatten(1).mean(1) / c_out**2

    def public_rows(
        self, images: Tensor, labels: Tensor, config: DiffusionPretrain, random: torch.Generator
    ) -> dict[str, Tensor]:
        """The arguments of `loss`."""
        hidden = torch.rand(len(images), generator=random) < config.label_dropout
        shown = torch.where(hidden, self.num_classes, labels)
        sigma = torch.exp(config.sigma_mean + config.sigma_std * torch.randn(len(images), generator=random))
        return {
            "images": images,
            "noise": torch.randn(images.shape, generator=random),
            "sigma": sigma,
            "labels": shown,
        }

    def public_losses(self, weights: Weights, rows: Mapping[str, Tensor]) -> Tensor:
        def network(*args: Tensor) -> Any:
            return functional_call(self, dict(weights), args).float()

        return self.loss(**rows, network=network)

    def private_rows(
        self, images: Tensor, labels: Tensor, config: DiffusionFinetune, random: torch.Generator, weights: Weights
    ) -> Sequence[Tensor]:
        return noise_rows(images, labels, self.num_classes, config, random)

    def private_loss(self, network: Network, *rows: Tensor) -> Tensor:
        return self.loss(*rows, network=network)

    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return shape

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        by = self.sampling
        sigmas = sigma_schedule(by.num_steps, by.sigma_min, by.sigma_max, by.rho)
        return sample_multistep(guided(self, labels, by.guidance), noise, sigmas)


def new_denoiser(
    config: DenoiserConfig, *, channels: int, num_classes: int, seed: int, sampling: DiffusionSampling | None = None
) -> Denoiser:
    """A denoiser with weights initialised from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(config, channels=channels, num_classes=num_classes)
    return Denoiser(net, sigma_data=config.sigma_data, num_classes=num_classes, sampling=sampling)


def noise_rows(
    images: Tensor, labels: Tensor, no_label: int, config: DiffusionFinetune, generator: torch.Generator
) -> Sequence[Tensor]:
    """Rows for `Denoiser.private_loss`, the draws of one image side by side, on the generator's device.

    Args:
        images: uint8 (images, C, H, W); labels: int64 (images,), hidden once an image (as `no_label`), not once a draw.

    Returns:
        images in [-1, 1], each draw mirrored by a coin of its own if so configured; standard normal noise; sigma; labels.
    """
    device, count, draws = generator.device, len(images), config.noise_samples
    hidden = torch.rand(count, generator=generator, device=device) < config.label_dropout
    shown = torch.where(hidden, no_label, labels.to(device)).repeat_interleave(draws)
    drawn = torch.randn(count * draws, generator=generator, device=device)
    sigma = torch.exp(config.sigma_mean + config.sigma_std * drawn)
    x = from_pixels(images.to(device)).repeat_interleave(draws, 0)
    if config.horizontal_flip:
        mirrored = torch.rand(len(x), generator=generator, device=device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x, torch.randn(x.shape, generator=generator, device=device), sigma, shown
