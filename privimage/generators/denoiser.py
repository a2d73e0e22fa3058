"""The denoiser: preconditioning and loss of EDM (Karras et al. 2022, arXiv:2206.00364)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from privimage.config import DenoiserConfig
from privimage.generators.unet import UNet
from privimage.privacy.gradients import Network

__all__ = ["Denoiser", "from_pixels", "new_denoiser", "to_pixels"]


def from_pixels(images: Tensor) -> Tensor:
    """uint8 NCHW in 0..255 => float32 NCHW in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """float NCHW in [-1, 1] => uint8 NCHW, rounded (not truncated)."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Denoiser(nn.Module):
    """D(x; sigma, label) = c_skip x + c_out F(c_in x; c_noise, label), Eq. 7; F is the raw network."""

    def __init__(self, net: UNet, *, sigma_data: float, num_classes: int) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.num_classes = num_classes

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


def new_denoiser(config: DenoiserConfig, *, channels: int, num_classes: int, seed: int) -> Denoiser:
    """A denoiser with weights initialised from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(config, channels=channels, num_classes=num_classes)
    return Denoiser(net, sigma_data=config.sigma_data, num_classes=num_classes)
