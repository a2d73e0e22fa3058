"""Membership inference: can one tell training images by scores, such as how well the generator removes their noise?

The attacker has the generator's weights, and guesses that images with a small loss were trained on. Differential privacy
bounds how well this can work; how well it does work is weak evidence, since other attacks may work better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata

from privimage.errors import DataError
from privimage.evaluation.estimate import LEVEL
from privimage.privacy.audit import clopper_pearson_epsilon

__all__ = ["LEAST", "Membership", "Share", "membership"]

LEAST = 100
FALSE_POSITIVES = 0.01
SEED = 0  # of the order in which scores choose a threshold and are judged by it


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share or an area, with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well scores tell members from others, all from sensitive images: internal.

    Attributes:
        auc: area under the curve of true against false positives; a half if they tell nothing.
        tpr: true positives where `FALSE_POSITIVES` of the others are taken for members.
        epsilon: a lower bound, if members and others are exchangeable, and images independent (`clopper_pearson`).
        members, others: how many images there were.
    """

    auc: Share
    tpr: Share
    epsilon: float
    members: int
    others: int


def membership(members: NDArray[np.float64], others: NDArray[np.float64], delta: float) -> Membership:
    """From scores, which are higher for images that look like members.

    Raises:
        DataError: fewer than LEAST scores on a side, or not finite.
    """
    if min(len(members), len(others)) < LEAST:
        raise DataError(
            f"Membership inference needs at least {LEAST} training and {LEAST} test images, found {len(members):,} and "
            f"{len(others):,}."
        )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise DataError("Some denoising losses are not finite, expected finite numbers: the generator diverged.")
    threshold = np.sort(others)[-max(1, int(FALSE_POSITIVES * len(others)))]
    caught = int((members > threshold).sum())
    found = binomtest(caught, len(members)).proportion_ci(LEVEL, method="exact")
    mixed = np.random.default_rng(SEED).permutation(len(members) + len(others))
    return Membership(
        auc=_auc(members, others),
        tpr=Share(value=caught / len(members), low=float(found.low), high=float(found.high)),
        epsilon=clopper_pearson_epsilon(
            (np.arange(len(mixed)) < len(members))[mixed], np.concatenate([members, others])[mixed], delta
        ),
        members=len(members),
        others=len(others),
    )


def _auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> Share:
    """Source: DeLong et al. (1988); a tie counts one half."""
    both = rankdata(np.concatenate([members, others]))
    of_members = (both[: len(members)] - rankdata(members)) / len(others)
    of_others = 1 - (both[len(members) :] - rankdata(others)) / len(members)
    value = float(of_members.mean())
    variance = of_members.var(ddof=1) / len(members) + of_others.var(ddof=1) / len(others)
    half = float(norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance))
    return Share(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
