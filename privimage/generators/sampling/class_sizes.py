"""How many synthetic images each class gets: the same number, or as the noisy votes of the query tell.

The query's votes are counted by class: `num_votes` of each image. So the sum of a class's noisy counts tells how many
images it has, at no further cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["SMALLEST_CLASS", "labels_of", "shares_by_votes", "standard_error"]

SMALLEST_CLASS = 0.1
"""Of the mean size: below that, noise may make anything of what was counted of a class, or a negative number."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def shares_by_votes(noisy_votes: ArrayLike, num_votes: int) -> list[float]:
    """Share of each class, (classes,), of a noisy histogram (classes, categories); none below a tenth of the mean.

    Post-processing of the query's release.
    """
    sizes = np.maximum(np.asarray(noisy_votes, dtype=np.float64).sum(1) / num_votes, 0)
    # One image at least, where noise made all of them negative.
    sizes = np.maximum(sizes, SMALLEST_CLASS * max(float(sizes.mean()), 1.0))
    shares: list[float] = (sizes / sizes.sum()).tolist()
    return shares


def standard_error(noise_stddev: float, num_categories: int, num_votes: int) -> float:
    """Standard deviation of the noise on what `shares_by_votes` takes for the number of a class's images."""
    return noise_stddev * math.sqrt(num_categories) / num_votes


def labels_of(numbers: Tensor, num_classes: int, shares: Sequence[float] | None = None) -> Tensor:
    """The class of each image, by its number alone: classes in turn, or mixed evenly, with `shares` of any run of numbers.

    With shares, the class of number i is where the fractional part of i times the golden ratio falls, which fills the unit
    interval evenly: any range of numbers can be made by itself, and however many images there are, shares are met to
    a few images.
    """
    if shares is None:
        return numbers % num_classes
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return torch.searchsorted(ends, (numbers.double() * _GOLDEN).frac(), right=True)
