"""What finite computers add to the ideal Gaussian noise that is accounted: the bounds, in one place. No torch.

The accountant computes with real numbers. The noise of a DP-SGD step is made in float64 from a keystream, and what is
released is a whole number of lattice points. `docs/privacy.md`, "Numbers in a computer", proves that a plan of at most
`MOST_DRAWS` such numbers, accounted as (epsilon, delta) with ideal noise, is (epsilon + `EPSILON`, delta / (1 - `DELTA_SHARE`))-
differentially private. `accounting.epsilon_of` and the filter over runs (`budget.py`) take both off.
"""

from __future__ import annotations

__all__ = ["DELTA_SHARE", "EPSILON", "MOST_DRAWS", "PER_STDDEV", "ideal"]

PER_STDDEV = 64
"""Lattice points in a standard deviation of the noise: a power of two, so that scaling by it is exact."""

MOST_DRAWS = 1 << 38
"""Numbers that a plan may release by DP-SGD: all weights of all steps."""

EPSILON = 2.0**-16
DELTA_SHARE = 2.0**-15


def ideal(epsilon: float, delta: float) -> tuple[float, float]:
    """The (epsilon, delta) that ideal noise must keep, so that noise from a computer keeps the given one."""
    return epsilon - EPSILON, delta * (1 - DELTA_SHARE)
