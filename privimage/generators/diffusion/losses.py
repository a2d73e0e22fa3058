"""How well a denoiser knows each of many images: what a membership attack looks at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from privimage.data.pixels import from_pixels
from privimage.generators.diffusion.denoiser import Denoiser
from privimage.methods.generators.diffusion import DiffusionFinetune

__all__ = ["denoising_losses"]

LEVELS = 4
SEED = 0  # of the noise


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: DiffusionFinetune,
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
