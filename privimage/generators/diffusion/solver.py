"""Sampling of a denoiser: DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095) on EDM's probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privimage.generators.interface import ImageGenerator

__all__ = ["DenoiseFn", "guided", "sample_multistep", "sigma_schedule"]

DenoiseFn = Callable[[Tensor, float], Tensor]


def sigma_schedule(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """`num_steps` noise levels from sigma_max to sigma_min. Karras et al. (2022), Eq. 5, without its closing 0."""
    ramp = np.linspace(0, 1, num_steps)
    sigmas: list[float] = ((sigma_max ** (1 / rho) * (1 - ramp) + ramp * sigma_min ** (1 / rho)) ** rho).tolist()
    return sigmas


def guided(denoiser: ImageGenerator[Any, Any], labels: Tensor, guidance: float) -> DenoiseFn:
    """Classifier-free guidance: (1 + w) D(x, label) - w D(x, no label) (Ho and Salimans 2022, Eq. 6); w = 0 is plain.

    Any other weight takes two evaluations of the network.
    """

    def denoise(noised: Tensor, sigma: float) -> Tensor:
        sigmas = noised.new_full((len(noised),), sigma)
        conditional: Tensor = denoiser(noised, sigmas, labels)
        if guidance == 0:
            return conditional
        unconditional: Tensor = denoiser(noised, sigmas, torch.full_like(labels, denoiser.num_classes))
        return (1 + guidance) * conditional - guidance * unconditional

    return denoise


def sample_multistep(denoise: DenoiseFn, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Images from standard normal `noise`, after one evaluation of `denoise(noised, sigma)` at each of the noise levels.

    Of second order: a step holds for its whole length what the denoiser would say at its middle, by a line in ln sigma
    through its last two answers (Lu et al., Algorithm 2, with alpha = 1). The first step has one answer to go by; the
    last one, from the smallest level to 0, ends at the answer itself.
    """
    x = noise * sigmas[0]
    denoised = before = denoise(x, sigmas[0])
    last_length = math.inf
    for sigma, following in pairwise(sigmas):
        length = math.log(sigma / following)
        middle = denoised + length / (2 * last_length) * (denoised - before)
        x = following / sigma * x + (1 - following / sigma) * middle
        before, denoised, last_length = denoised, denoise(x, following), length
    return denoised
