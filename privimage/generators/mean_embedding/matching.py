"""DP-MERF (Harder, Adamczewski and Park 2021, arXiv:2002.11603): a generator that matches noisy mean embeddings.

An image's embedding is a vector of random features (`generators.features`): of its pixels, as in the paper, and, where public
images were selected, of what critics see in it, classifiers that learned from the selection to tell the sensitive classes
apart. The sums of these vectors, one for each class, are released with noise (`noisy_class_sums`). All else is
post-processing: a painter learns to paint, for each class, images whose mean embedding is the noisy one.

Two more things are not as in the paper. One number of the vector is a constant, so that the sums tell how many images a class has:
else classes that are not of one size would have means of the wrong length. And the distance is estimated by two halves of
a batch, without bias; the plain square also asks for means that vary little, which images that are all alike have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.errors import TrainingError
from privimage.generators.gan.networks import Painter
from privimage.generators.interface import ImageSource
from privimage.generators.mean_embedding.features import Features
from privimage.generators.sampling.class_sizes import SMALLEST_CLASS
from privimage.generators.training.ema import ema_copy, ema_update
from privimage.methods.generators.mean_embedding import MeanEmbedding

__all__ = ["AT_ONCE", "Embedded", "EmbeddingGenerator", "class_means", "match", "new_embedding_generator"]

AT_ONCE = 256  # images that features are computed of together, so that what is rehearsed is what will run

_CONSTANT = 0.2
"""The number of an image's vector that counts it; the others have norm sqrt(1 - 0.2^2), so they lose 2 % to it."""
_BETAS = (0.5, 0.99)  # as for the painter of a GAN


class EmbeddingGenerator(ImageSource):
    """A GAN's painter, without a discriminator."""

    def __init__(self, painter: Painter, *, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.painter = painter
        self.latent_dim = latent_dim
        self.num_classes = num_classes

    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return (self.latent_dim,)

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """One pass of the painter."""
        images: Tensor = self.painter(noise, labels)
        return images


def new_embedding_generator(
    config: MeanEmbedding, *, channels: int, resolution: int, num_classes: int, seed: int
) -> EmbeddingGenerator:
    """A generator with weights initialised from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        painter = Painter(config, channels=channels, resolution=resolution, num_classes=num_classes)
    return EmbeddingGenerator(painter, latent_dim=config.latent_dim, num_classes=num_classes)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What each image adds to its class's sum, (images, features + 1): private. Computed for the rows that are asked for.

    Guarantee: a row is a function of its image and of public numbers, and has norm 1 but for rounding, which
    `noisy_class_sums` sees to.
    """

    private_images: NDArray[np.uint8]
    features: Features

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.private_images), self.features.size + 1

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        asked = self.private_images[rows]
        vectors = np.full((len(asked), self.features.size + 1), _CONSTANT, dtype=np.float32)
        for start in range(0, len(asked), AT_ONCE):
            images = from_pixels(torch.from_numpy(asked[start : start + AT_ONCE]).to(self.features.device))
            found = self.features(images) * math.sqrt(1 - _CONSTANT**2)
            vectors[start : start + AT_ONCE, :-1] = found.cpu()
        return vectors


def class_means(noisy_sums: NDArray[np.float64], num_images: int) -> Tensor:
    """The mean embedding of each class, (classes, features), from the released sums of `Embedded`'s rows.

    Args:
        num_images: the public number of all images.
    """
    counts = noisy_sums[:, -1:] / _CONSTANT
    counts = np.maximum(counts, SMALLEST_CLASS * num_images / len(noisy_sums))
    return torch.from_numpy(noisy_sums[:, :-1] / math.sqrt(1 - _CONSTANT**2) / counts).float()


def match(
    generator: EmbeddingGenerator,
    means: Tensor,
    features: Features,
    config: MeanEmbedding,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Tensor]:
    """Train `generator` (changed in place) until its classes have these mean embeddings; returns averaged weights.

    Post-processing: a function of `means`, the generator's weights, and the configuration, seed included.

    Args:
        means: (classes, features); on the device of generator and features.
        on_step: called after each step with its number.

    Raises:
        TrainingError: a weight is not finite after the last step.
    """
    weights = dict(generator.named_parameters())
    average = ema_copy(weights)
    optimizer = torch.optim.Adam(weights.values(), lr=config.learning_rate, betas=_BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps, 0.02 * config.learning_rate)
    random = torch.Generator().manual_seed(config.seed + 1)  # other numbers than the directions'
    each = math.ceil(config.batch_size / (2 * generator.num_classes))
    labels = torch.arange(generator.num_classes, device=means.device).repeat(2 * each)
    for step in range(1, config.num_steps + 1):
        latent = torch.randn(len(labels), config.latent_dim, generator=random).to(means.device)
        found = features(generator.painter(latent, labels)).view(2, each, *means.shape).mean(1)
        optimizer.zero_grad()
        ((found[0] - means) * (found[1] - means)).sum().backward()
        optimizer.step()
        schedule.step()
        ema_update(average, weights, decay=config.ema_decay, step=step)
        on_step(step)
    if not all(bool(tensor.isfinite().all()) for tensor in average.values()):
        raise TrainingError(
            "Training on the noisy embedding diverged: a weight is not finite; lower generator.learning_rate."
        )
    return average
