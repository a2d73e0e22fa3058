"""Deterministic sampling: of any generator from seeds, and of a denoiser, by DPM-Solver++(2M) (Lu et al. 2022,
arXiv:2211.01095) on EDM's probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from privimage.config import SynthesizeConfig
from privimage.generators.interface import ImageGenerator, ImageSource
from privimage.generators.pixels import to_pixels

__all__ = ["guided", "initial_noise", "sample_multistep", "sigma_schedule", "synthesize_images"]

DenoiseFn = Callable[[Tensor, float], Tensor]

# From so many rows on, in one thread, the kernels of a CPU give an image the same bits in every batch; for fewer
# others are used, which add in another order.
_FEWEST_ROWS = 16


def sigma_schedule(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """`num_steps` noise levels from sigma_max to sigma_min. Karras et al. (2022), Eq. 5, without its closing 0."""
    ramp = np.linspace(0, 1, num_steps)
    sigmas: list[float] = ((sigma_max ** (1 / rho) * (1 - ramp) + ramp * sigma_min ** (1 / rho)) ** rho).tolist()
    return sigmas


def initial_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (len(seeds), *shape); row i depends on seeds[i] only, so batches and devices change nothing."""
    # NumPy's Philox takes all 64 bits of a seed as its key; torch's CPU generator would drop the upper 32.
    rows = [np.random.Generator(np.random.Philox(key=int(seed))).standard_normal(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def guided(denoiser: ImageGenerator, labels: Tensor, guidance: float) -> DenoiseFn:
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


@torch.no_grad()
def synthesize_images(
    generator: ImageSource, labels: Tensor, seeds: Tensor, shape: tuple[int, int, int], config: SynthesizeConfig
) -> Tensor:
    """uint8 NCHW images for `labels` (batch,), one seed each; a pure function of the arguments.

    In one thread of a CPU row i is a function of labels[i] and seeds[i], to the bit, whatever the batch. Elsewhere the
    size of the batch, or the number of threads, may choose kernels that round otherwise: a pixel at the edge of rounding may
    then differ by one level, and of a generator with a judge (`judged`) another of its attempts may be taken.
    """
    device = next(generator.parameters()).device
    padding = -len(labels) % _FEWEST_ROWS
    rows = functional.pad(labels, (0, padding)).to(device)
    noise = initial_noise(seeds, generator.noise_shape(shape))
    noise = functional.pad(noise, (*[0, 0] * (noise.dim() - 1), 0, padding)).to(device)
    images = generator.sample(noise, rows, config)
    return to_pixels(images[: len(labels)]).cpu()
