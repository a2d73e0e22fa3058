"""Two public images laid over each other: neither of them is what is released."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["blends"]

_SHARE = (0.3, 0.7)
_SHARPNESS = 3.0  # power of the probabilities by which images are taken for a class


def blends(
    images: NDArray[np.uint8], probabilities: NDArray[np.float32], count: int, *, seed: int
) -> NDArray[np.uint8]:
    """`count` blends, uint8 (count, C, H, W), of two images that may be of one class, classes in turn.

    Each image has between 30 and 70 percent of a blend. Two different images are taken wherever a class has two.

    Args:
        images: uint8 (images, C, H, W); probabilities: of the classes, (images, classes).
    """
    random = np.random.default_rng(seed)
    num_classes = probabilities.shape[1]
    found = np.empty((count, *images.shape[1:]), dtype=np.uint8)
    for label in range(num_classes):
        places = np.arange(label, count, num_classes)
        weights = probabilities[:, label].astype(np.float64) ** _SHARPNESS + 1e-12
        first, second = random.choice(len(images), (2, len(places)), p=weights / weights.sum())
        second = np.where(first == second, (second + 1) % len(images), second)
        share = random.uniform(*_SHARE, (len(places), 1, 1, 1))
        found[places] = np.round(share * images[first] + (1 - share) * images[second]).astype(np.uint8)
    return found
