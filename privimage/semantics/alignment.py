"""Semantic alignment: do selected public images, and synthetic ones, mean what the sensitive images mean?

What the sensitive images mean is known from their noisy votes alone, so every figure here is charged: it follows from
the query's released histogram, its public noise, and from images that are public or released. The noise is taken out
of each figure as far as its expectation goes; what is left of it is the deviation beside the figure.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

__all__ = ["Aligned", "effective_categories", "mean_of", "share_of_votes", "similarity"]

# Below this many standard deviations of noise alone, nothing can be said of the votes.
CLEAR = 2.0


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A figure and the standard deviation that the query's noise gives it."""

    value: float
    deviation: float


def share_of_votes(votes: np.ndarray, chosen: Collection[int], noise_stddev: float) -> Aligned | None:
    """Share of a class's votes that fell on the chosen categories; None where noise drowns the votes.

    Categories are chosen because their noisy votes are high, so the figure is somewhat too high, the more so the fewer
    votes there are.

    Args:
        votes: noisy, shape (categories,).
    """
    total, num = float(votes.sum()), len(votes)
    if total <= CLEAR * noise_stddev * np.sqrt(num):
        return None
    share = float(np.clip(votes[list(chosen)].sum() / total, 0, 1))
    variance = len(chosen) * (1 - share) ** 2 + (num - len(chosen)) * share**2
    return Aligned(value=share, deviation=float(noise_stddev * np.sqrt(variance) / total))


def effective_categories(votes: np.ndarray, noise_stddev: float) -> float | None:
    """On how many categories a class's votes spread: 1 if all fall on one, n if equally on n; None if drowned.

    The inverse of Simpson's index, from unbiased estimates of its numerator and denominator.
    """
    squares = _squares(votes, noise_stddev)
    if squares is None:
        return None
    total = max(float(votes.sum()) ** 2 - len(votes) * noise_stddev**2, 0.0)
    return float(np.clip(total / squares, 1, len(votes)))


def similarity(votes: np.ndarray, mix: np.ndarray, noise_stddev: float) -> Aligned | None:
    """Cosine between a class's votes and another mix of the same categories: 1 = the same mix, 0 = nothing in common.

    None where noise drowns the votes, or the mix is empty.

    Args:
        votes: noisy, shape (categories,).
        mix: how often each category occurs in the other set, shape (categories,).
    """
    squares, length = _squares(votes, noise_stddev), float(np.linalg.norm(mix))
    if squares is None or length == 0:
        return None
    value = float(np.clip(votes @ mix / (length * np.sqrt(squares)), 0, 1))
    # Noise across the votes turns them; of noise along them only the square is left, which their length is estimated by.
    turned = (1 - value**2) * noise_stddev**2 / squares
    longer = value**2 * len(votes) * noise_stddev**4 / (2 * squares**2)
    return Aligned(value=value, deviation=float(np.sqrt(turned + longer)))


def mean_of(figures: Collection[Aligned | None]) -> Aligned | None:
    """Mean over the classes that have the figure; None without any."""
    there = [figure for figure in figures if figure is not None]
    if not there:
        return None
    variance = sum(figure.deviation**2 for figure in there)
    return Aligned(
        value=float(np.mean([figure.value for figure in there])), deviation=float(np.sqrt(variance) / len(there))
    )


def _squares(votes: np.ndarray, noise_stddev: float) -> float | None:
    """Sum of the squared votes without noise, estimated; None where it could be noise alone."""
    noise = len(votes) * noise_stddev**2
    squares = float(votes @ votes) - noise
    return squares if squares > CLEAR * np.sqrt(2 / len(votes)) * noise else None
