"""Embeddings of images: random features of norm 1, of pixels or of what a network sees in them.

Random Fourier features (Rahimi and Recht 2007): cosines and sines of random projections, whose inner products are nearly a
Gaussian kernel's. Whatever they are computed from, their squares add up to 1: so the norm of what one image adds to a sum
is known without looking at an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from privimage.data.pixels import from_pixels

__all__ = ["Features", "JointFeatures", "RandomFeatures", "Scaling", "median_distance", "new_features", "scaling_of"]

_COMPARED = 500  # vectors whose distances set a lengthscale


class Features(Protocol):
    """Of images in [-1, 1], NCHW: (batch, size), each row of norm 1 and a function of its image alone."""

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class RandomFeatures:
    """Of a Gaussian kernel on what `view` makes of images, from public numbers: `directions` (numbers, size / 2)."""

    directions: Tensor
    view: Callable[[Tensor], Tensor]

    @property
    def size(self) -> int:
        return 2 * self.directions.shape[1]

    @property
    def device(self) -> torch.device:
        return self.directions.device

    def __call__(self, images: Tensor) -> Tensor:
        angles = self.view(images) @ self.directions
        return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(self.directions.shape[1])


@dataclass(frozen=True, kw_only=True)
class JointFeatures:
    """Several side by side, each with its share of the squared norm."""

    parts: Sequence[Features]
    shares: Sequence[float]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def __call__(self, images: Tensor) -> Tensor:
        found = [math.sqrt(share) * part(images) for part, share in zip(self.parts, self.shares, strict=True)]
        return torch.cat(found, dim=1)


def new_features(
    numbers: int,
    num_features: int,
    *,
    lengthscale: float,
    seed: int,
    device: torch.device,
    view: Callable[[Tensor], Tensor] = lambda images: images.flatten(1),
) -> RandomFeatures:
    """Directions drawn from `seed` on the CPU, so that every device has the same; `view` gives (batch, numbers)."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(numbers, num_features // 2, generator=random) / lengthscale
    return RandomFeatures(directions=directions.to(device), view=view)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Means and deviations of numbers over public images: what makes them comparable."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, numbers: Tensor) -> Tensor:
        return (numbers - self.mean) / self.deviation


def scaling_of(public: Tensor) -> Scaling:
    """From public vectors (images, numbers); a number that hardly varies is not blown up."""
    return Scaling(mean=public.mean(0), deviation=public.std(0) + 1e-3)


def median_distance(
    public_images: NDArray[np.uint8], view: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)
) -> float:
    """Median Euclidean distance of `view` of public images with pixels in [-1, 1], of some spread over the whole set."""
    rows = np.linspace(0, len(public_images) - 1, min(len(public_images), _COMPARED)).astype(np.int64)
    distances = functional.pdist(view(from_pixels(torch.from_numpy(public_images[rows]))))
    return float(distances.median())
