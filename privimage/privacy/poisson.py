"""Poisson sampling, exactly as it is accounted: every image is in or out by its own coin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privimage.privacy.entropy import Random

__all__ = ["poisson_batch"]


def poisson_batch(num_images: int, sample_rate: float, random: Random) -> NDArray[np.int64]:
    """Row numbers of one Poisson batch, ascending; possibly none.

    Guarantee: each of `num_images` rows is included with probability `sample_rate`, independently of all others and
    of all other batches (to within 2^-53). The size of the result is private: never log it.
    """
    return np.flatnonzero(random.uniform(num_images) < sample_rate)
