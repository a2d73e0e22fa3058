"""Poisson sampling, exactly as it is accounted: every image is in or out by its own coin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privimage.privacy.entropy import Random

__all__ = ["poisson_batch"]


def poisson_batch(num_images: int, sample_rate: float, random: Random, largest: int | None = None) -> NDArray[np.int64]:
    """Row numbers of one Poisson batch, ascending; possibly none, and at most `largest`.

    Guarantee: each of `num_images` rows is included with probability `sample_rate`, independently of all others and
    of all other batches (to within 2^-53). If that makes more than `largest` rows, a uniformly random subset of
    `largest` of them is kept: those with the smallest of as many draws as there are images. All draws are made in
    every batch, needed or not, so how many are asked for depends on public numbers only. The size of the result is
    private: never log it.
    """
    rows = np.flatnonzero(random.uniform(num_images) < sample_rate)
    if largest is None:
        return rows
    places = random.uniform(num_images)[rows]
    return np.sort(rows[places.argsort()[:largest]])
