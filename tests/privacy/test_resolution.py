"""How fine the draws of the guarantee's randomness are: coarse ones end where the noise of a Gaussian mechanism must not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from privimage.privacy.entropy import SecretRandom

DRAWS = 2**21
# Of 2^21 draws with 52 bits two are equal with a probability of 2^-11; four pairs are with less than 1e-14.
MOST_PAIRS = 3


def pairs_of_equals(draws: np.ndarray) -> int:
    return len(draws) - len(np.unique(draws))


def test_uniform_draws_are_finer_than_two_to_the_minus_50() -> None:
    """So the rarest one stands for a Gaussian beyond 8 standard deviations; with 24 bits all end at 5.3."""
    draws = SecretRandom().uniform(DRAWS)
    within = np.mod(draws, 2.0**-50)
    assert len(np.unique(within)) >= 4
    assert len(np.unique(np.mod(np.floor(draws * 2.0**24) / 2.0**24, 2.0**-50))) == 1, "24 bits would be seen"
    assert ndtri(2.0**-52) < -8 and ndtri(2.0**-25) > -5.5


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_no_two_of_two_million_draws_are_equal(kind: str) -> None:
    """Those of 40 bits and fewer would be, in at least two pairs in the mean, those of 32 in 500."""
    draws = getattr(SecretRandom(), kind)(DRAWS)
    assert pairs_of_equals(draws) <= MOST_PAIRS
    coarse = np.floor(SecretRandom().uniform(DRAWS) * 2.0**32)
    assert pairs_of_equals(coarse) > 100 * MOST_PAIRS
