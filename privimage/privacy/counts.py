"""Noise on counts: what the query and the validation release. No torch."""

from __future__ import annotations

import numpy as np
import opendp.prelude as opendp
from numpy.typing import NDArray

from privimage.errors import PrivacyRefused
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import GaussianCounts

__all__ = ["add_noise"]

# Noise lives on multiples of 1/1024 vote: exact integers for the sampler, and so fine against its standard deviation
# that the discrete Gaussian's privacy loss is the continuous one's to below the accountant's own grid.
LATTICE = 1024


def add_noise(
    counts: NDArray[np.int64],
    mechanism: GaussianCounts,
    *,
    insecure_random: InsecureRandomForTests | None = None,
) -> NDArray[np.float64]:
    """The released counts: exact discrete Gaussian noise (Canonne et al. 2020, by OpenDP) on each.

    Guarantee: integer arithmetic on a lattice of 1/1024 vote, entropy from the operating system, standard deviation
    `mechanism.noise_stddev`. `insecure_random` replaces the noise by reproducible draws and voids the guarantee.

    Raises:
        PrivacyRefused: OpenDP's own privacy map does not confirm the accounted noise multiplier.
    """
    if insecure_random is not None:
        draws = insecure_random.normal(counts.size).reshape(counts.shape)
        return counts + mechanism.noise_stddev * draws
    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    measurement = opendp.m.make_gaussian(*space, scale=mechanism.noise_stddev * LATTICE)
    rho = measurement.map(mechanism.sensitivity * LATTICE)
    if rho > 1.000001 / (2 * mechanism.noise_multiplier**2):
        raise PrivacyRefused(f"OpenDP bounds the counts' zCDP by {rho}, above what its noise multiplier accounts for.")
    noisy = np.asarray(measurement((counts * LATTICE).ravel().tolist()), dtype=np.float64)
    return noisy.reshape(counts.shape) / LATTICE
