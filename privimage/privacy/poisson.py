"""Poisson sampling, exactly as it is accounted: every image is in or out by its own coin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privimage.privacy.entropy import Random

__all__ = ["poisson_batch"]


def poisson_batch(num_images: int, sample_rate: float, random: Random, largest: int | None = None) -> NDArray[np.int64]:
    """Row numbers of one Poisson batch, ascending; possibly none, and at most `largest`.

    Guarantee: each of `num_images` rows is included independently of all others and of all other batches, with the largest
    multiple of 2^-52 that is not above `sample_rate` for its probability. If that makes more than `largest` rows, a
    uniformly random subset of `largest` of them is kept: those with the smallest of as many draws as there are images.
    All draws are made in every batch, needed or not, so how many are asked for depends on public numbers only. The size
    of the result is private: never log it.
    """
    # Uniforms stand in the middle of cells of 2^-52: counted up to the end of their cell, the rate is never exceeded.
    rows = np.flatnonzero(random.uniform(num_images) + 2.0**-53 <= sample_rate)
    if largest is None:
        return rows
    places = random.uniform(num_images)[rows]
    return np.sort(rows[places.argsort()[:largest]])
