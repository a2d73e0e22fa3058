"""How well a generator knows each of many images: what a membership attack looks at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from privimage.config import FinetuneConfig
from privimage.errors import DataError
from privimage.generators.denoiser import Denoiser, from_pixels
from privimage.generators.gan import Gan
from privimage.generators.interface import ImageSource

__all__ = ["denoising_losses", "losses_of_images"]

LEVELS = 4
SEED = 0  # of the noise


def losses_of_images(
    generator: ImageSource,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: FinetuneConfig,
    *,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float64]:
    """Of each image: `denoising_losses` of a denoiser; what a GAN's discriminator scores it, with the opposite sign.

    Raises:
        DataError: for another kind of generator, none of whose networks was trained on a sensitive image.
    """
    if isinstance(generator, Denoiser):
        return denoising_losses(generator, images, labels, config, device=device, batch_size=batch_size)
    if isinstance(generator, Gan):
        return _scores(generator, images, labels, device=device, batch_size=batch_size)
    raise DataError(f"a {type(generator).__name__} has no loss of a given image")


@torch.no_grad()
def _scores(
    gan: Gan, images: NDArray[np.uint8], labels: NDArray[np.int64], *, device: torch.device, batch_size: int
) -> NDArray[np.float64]:
    """As in LOGAN (Hayes et al. 2019): a discriminator that has seen an image takes it for real."""
    found = [
        -gan.discriminator(
            from_pixels(torch.from_numpy(images[start : start + batch_size])).to(device),
            torch.from_numpy(labels[start : start + batch_size]).to(device),
        )
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(found).double().cpu().numpy()


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: FinetuneConfig,
    *,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float64]:
    """Mean loss of each image over LEVELS noise levels, those of training, with one noise for all images."""
    generator = torch.Generator().manual_seed(SEED)
    places = norm.ppf((np.arange(LEVELS) + 0.5) / LEVELS)
    sigmas = np.exp(config.sigma_mean + config.sigma_std * places)
    total = np.zeros(len(images))
    for sigma in sigmas:
        noise = torch.randn(images.shape[1:], generator=generator).to(device)
        for start in range(0, len(images), batch_size):
            x = from_pixels(torch.from_numpy(images[start : start + batch_size])).to(device)
            shown = torch.from_numpy(labels[start : start + batch_size]).to(device)
            level = torch.full((len(x),), float(sigma), device=device)
            losses = denoiser.loss(x, noise.expand_as(x), level, shown)
            total[start : start + batch_size] += losses.double().cpu().numpy()
    return total / LEVELS
