"""A measured number with what it is worth: how many images it rests on, and an interval.

Intervals are of level 95 %. Where no formula gives one, images are weighted anew at random many times (Bayesian
bootstrap): unlike drawing with replacement, this neither repeats an image, which would look like mode collapse, nor
lowers the rank of a covariance. An interval is about chance alone: the bias that few images give FID, precision, recall
and the Inception Score is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

__all__ = ["LEVEL", "Estimate", "around", "bootstrap_weights", "share"]

LEVEL = 0.95
REPEATS = 30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, the ends of its interval, and how many synthetic and private images it was computed from."""

    value: float
    low: float
    high: float
    num_synthetic: int
    num_private: int


def bootstrap_weights(num: int, generator: np.random.Generator) -> np.ndarray:
    """Weights of `num` images, each row summing to 1: first equal ones, then REPEATS rows of random ones.

    Source: Rubin (1981), The Bayesian Bootstrap.
    """
    random = generator.standard_exponential((REPEATS, num))
    return np.vstack([np.full(num, 1 / num), random / random.sum(axis=1, keepdims=True)])


def around(value: float, replicates: np.ndarray, sizes: tuple[int, int], least: float = -np.inf) -> Estimate:
    """The interval of a normal distribution around a value, as wide as its replicates scatter.

    Their own mean is not used: a bias that comes from the number of images is in each of them twice.

    Args:
        sizes: numbers of synthetic and private images.
        least: what the measure cannot fall below.
    """
    half = float(norm.ppf((1 + LEVEL) / 2) * np.std(replicates, ddof=1))
    low = max(value - half, least)
    return Estimate(value=value, low=low, high=value + half, num_synthetic=sizes[0], num_private=sizes[1])


def share(hits: np.ndarray, sizes: tuple[int, int]) -> Estimate:
    """The share of judged images that are hits, with Wilson's interval, which is not empty at 0 and 1 either."""
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(
        value=float(hits.mean()),
        low=float(found.low),
        high=float(found.high),
        num_synthetic=sizes[0],
        num_private=sizes[1],
    )
