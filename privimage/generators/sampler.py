"""Deterministic sampling: Heun's 2nd-order method on the probability-flow ODE (Karras et al. 2022, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from privimage.config import SynthesizeConfig
from privimage.generators.denoiser import Denoiser, to_pixels

__all__ = ["guided", "initial_noise", "sample_heun", "sigma_schedule", "synthesize_images"]

DenoiseFn = Callable[[Tensor, Tensor], Tensor]


def sigma_schedule(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels sigma_max .. sigma_min, then 0; shape (num_steps + 1,). Karras et al. (2022), Eq. 5."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def initial_noise(seeds: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal (len(seeds), *shape); row i depends on seeds[i] only, so batches and devices change nothing."""
    # NumPy's Philox takes all 64 bits of a seed as its key; torch's CPU generator would drop the upper 32.
    rows = [np.random.Generator(np.random.Philox(key=int(seed))).standard_normal(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def guided(denoiser: Denoiser, labels: Tensor, guidance: float) -> DenoiseFn:
    """Classifier-free guidance: (1 + w) D(x, label) - w D(x, no label) (Ho and Salimans 2022, Eq. 6); w = 0 is plain."""

    def denoise(noised: Tensor, sigma: Tensor) -> Tensor:
        sigmas = sigma.expand(len(noised))
        conditional: Tensor = denoiser(noised, sigmas, labels)
        if guidance == 0:
            return conditional
        unconditional: Tensor = denoiser(noised, sigmas, torch.full_like(labels, denoiser.num_classes))
        return (1 + guidance) * conditional - guidance * unconditional

    return denoise


def sample_heun(denoise: DenoiseFn, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Images from standard normal `noise`, after 2 * (len(sigmas) - 1) - 1 evaluations of `denoise(noised, sigma)`."""
    x = noise * sigmas[0]
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (euler - denoise(euler, following)) / following) / 2
            euler = x + (following - sigma) * slope
        x = euler
    return x


@torch.no_grad()
def synthesize_images(
    denoiser: Denoiser, labels: Tensor, seeds: Tensor, shape: tuple[int, int, int], config: SynthesizeConfig
) -> Tensor:
    """uint8 NCHW images for `labels` (batch,), one seed each; a pure function of the arguments."""
    device = next(denoiser.parameters()).device
    sigmas = sigma_schedule(config.num_steps, config.sigma_min, config.sigma_max, config.rho).to(device)
    denoise = guided(denoiser, labels.to(device), config.guidance)
    images = sample_heun(denoise, initial_noise(seeds, shape).to(device), sigmas)
    return to_pixels(images).cpu()
