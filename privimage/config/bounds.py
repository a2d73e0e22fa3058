"""Which epsilons and deltas can be accounted: bounds of configurations and of grants alike.

Below the smallest delta the rounding of float64 is no longer small beside the probability that is asked for: the two accountants
contradict each other from about 1e-11 on, and give up soon after. Above the largest epsilon nothing is kept private, and of very
small ones the noise drowns everything.
"""

from __future__ import annotations

__all__ = ["LARGEST_EPSILON", "SMALLEST_DELTA", "SMALLEST_EPSILON"]

SMALLEST_EPSILON, LARGEST_EPSILON = 1e-4, 1000.0
SMALLEST_DELTA = 1e-10
