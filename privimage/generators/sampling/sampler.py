"""Deterministic sampling of any generator, from a seed for each image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from privimage.data.pixels import to_pixels
from privimage.generators.interface import ImageSource

__all__ = ["initial_noise", "synthesize_images"]

# From so many rows on, in one thread, the kernels of a CPU give an image the same bits in every batch; for fewer
# others are used, which add in another order.
_FEWEST_ROWS = 16


def initial_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (len(seeds), *shape); row i depends on seeds[i] only, so batches and devices change nothing."""
    # NumPy's Philox takes all 64 bits of a seed as its key; torch's CPU generator would drop the upper 32.
    rows = [np.random.Generator(np.random.Philox(key=int(seed))).standard_normal(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def synthesize_images(generator: ImageSource, labels: Tensor, seeds: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 NCHW images for `labels` (batch,), one seed each; a pure function of the arguments.

    In one thread of a CPU row i is a function of labels[i] and seeds[i], to the bit, whatever the batch. Elsewhere the
    size of the batch, or the number of threads, may choose kernels that round otherwise: a pixel at the edge of rounding may
    then differ by one level, and of a generator with a critic (`rejection`) another of its attempts may be taken.
    """
    device = next(generator.parameters()).device
    padding = -len(labels) % _FEWEST_ROWS
    rows = functional.pad(labels, (0, padding)).to(device)
    noise = initial_noise(seeds, generator.noise_shape(shape))
    noise = functional.pad(noise, (*[0, 0] * (noise.dim() - 1), 0, padding)).to(device)
    images = generator.sample(noise, rows)
    return to_pixels(images[: len(labels)]).cpu()
