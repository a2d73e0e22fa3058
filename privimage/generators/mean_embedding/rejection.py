"""Rejection sampling: of a few images the first whose class a classifier sees is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from privimage.generators.interface import ImageSource

__all__ = ["RejectionSampling"]


class RejectionSampling(ImageSource):
    """A source of images, and a critic of them: of each `attempts` images the first to which the critic gives the class that was asked
    for; if there is none, the last.

    Guarantee: as of its source, an image depends on its own noise and label alone. The critic must be in evaluation mode for that.

    Args:
        critic: images in [-1, 1], (batch, C, H, W) => logits (batch, classes).
        attempts: at least 1.
    """

    def __init__(self, source: ImageSource, critic: nn.Module, *, attempts: int) -> None:
        super().__init__()
        self.source = source
        self.critic = critic
        self.attempts = attempts
        self.num_classes = source.num_classes

    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return self.attempts, *self.source.noise_shape(shape)

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Every attempt is made for all rows: fewer rows could be rounded otherwise."""
        images = self.source.sample(noise[:, 0], labels)
        for attempt in range(1, self.attempts):
            accepted = self.critic(images).argmax(1) == labels
            again = self.source.sample(noise[:, attempt], labels)
            images = torch.where(accepted[:, None, None, None], images, again)
        return images
