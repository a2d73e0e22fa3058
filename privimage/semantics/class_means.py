"""class mean images: the mean image of each class, from noisy sums of bounded differences. No torch.

The idea is that of DP-FETA (Li et al. 2025). Here each image is taken relative to a public mean image and cut
to a public norm, so that the noise that is needed follows from the bound alone; and nothing is subsampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privimage.errors import DataError

__all__ = ["Differences", "class_sizes", "largest_norm", "mean_image"]

# A class that the votes say is smaller is taken for this share of the mean class: noise may make it anything.
LEAST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Each image's difference from a public one, in units of `max_norm`: rows (images, pixels) for `class_sums`.

    Attributes:
        images: uint8 NCHW; they may be mapped from a file, and are read as rows are asked for.
        reference: in [-1, 1], the shape of an image.
    """

    images: NDArray[np.uint8]
    reference: NDArray[np.float64]
    max_norm: float

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.images), self.reference.size

    def __getitem__(self, rows: slice, /) -> NDArray[np.float64]:
        return _pixels(self.images[rows], self.reference) / self.max_norm


def mean_image(batches: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean of uint8 NCHW images, in [-1, 1]."""
    total, count = np.zeros(()), 0
    for images in batches:
        total, count = total + images.sum(axis=0, dtype=np.int64), count + len(images)
    if count == 0:
        raise DataError("There are no public images to take the mean of.")
    return np.asarray(total / count / 127.5 - 1, dtype=np.float64)


def largest_norm(batches: Iterable[NDArray[np.uint8]], reference: NDArray[np.float64]) -> float:
    """The median norm of public images' differences from `reference`: the default of `generator.class_means.max_norm`.

    Raises:
        DataError: it is 0.
    """
    found = float(np.median(np.concatenate([np.linalg.norm(_pixels(b, reference), axis=1) for b in batches])))
    if not found > 0:
        raise DataError(
            "At least half of the public images are equal, so that they bound no norm: give generator.class_means.max_norm."
        )
    return found


def class_sizes(
    num_classes: int, num_images: int, votes: NDArray[np.float64] | None, num_votes: int
) -> NDArray[np.float64]:
    """About how many images each class has: from noisy votes, (classes, categories), else equally many.

    Post-processing: each image has `num_votes` votes, all in the row of its class.
    """
    equal = num_images / num_classes
    if votes is None:
        return np.full(num_classes, equal)
    return np.asarray(np.clip(votes.sum(axis=1) / num_votes, LEAST_SHARE * equal, num_images), dtype=np.float64)


def _pixels(images: NDArray[np.uint8], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences in [-2, 2], (images, pixels)."""
    found: NDArray[np.float64] = (images / 127.5 - 1 - reference).astype(np.float64)
    return found.reshape(len(images), -1)
