"""Noise on counts and sums: what the query, the validation and class sums release. No torch."""

from __future__ import annotations

import math

import numpy as np
import opendp.prelude as opendp
from numpy.typing import NDArray

from privimage.errors import PrivacyRefused
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import GaussianCounts

__all__ = ["add_lattice_noise", "add_noise"]

# Noise lives on multiples of 2^-20 vote: exact integers for the sampler, and so fine against its standard deviation that the
# discrete Gaussian's privacy loss is the continuous one's but for what `numerics.EPSILON` holds.
LATTICE = 1 << 20
# Numbers with noise of S lattice points may be as many as (_FINENESS * S^2)^2; proof in docs/privacy.md.
_FINENESS = 2.0**-21


def add_noise(
    counts: NDArray[np.int64],
    mechanism: GaussianCounts,
    *,
    insecure_random: InsecureRandomForTests | None = None,
) -> NDArray[np.float64]:
    """The released counts: `add_lattice_noise` on a lattice of 2^-20 vote."""
    return add_lattice_noise(counts * LATTICE, mechanism, per_unit=LATTICE, insecure_random=insecure_random)


def add_lattice_noise(
    points: NDArray[np.int64],
    mechanism: GaussianCounts,
    *,
    per_unit: int,
    insecure_random: InsecureRandomForTests | None = None,
) -> NDArray[np.float64]:
    """The released numbers `points / per_unit`: exact discrete Gaussian noise (Canonne et al. 2020, by OpenDP) on each.

    Guarantee: integer arithmetic on a lattice of 1 / per_unit, entropy from the operating system, standard deviation
    `mechanism.noise_stddev`. `insecure_random` replaces the noise by reproducible draws and voids the guarantee.

    Raises:
        PrivacyRefused: OpenDP's own privacy map does not confirm the accounted noise multiplier; or the noise is so small
            against the lattice, for so many numbers, that the discrete Gaussian may differ too much from the accounted one.
    """
    if math.sqrt(points.size) > _FINENESS * (mechanism.noise_stddev * per_unit) ** 2:
        raise PrivacyRefused(
            f"Noise of standard deviation {mechanism.noise_stddev:.3g} on {points.size} numbers is too small for a lattice of "
            f"1/{per_unit}: what is accounted is Gaussian noise without one."
        )
    if insecure_random is not None:
        draws = insecure_random.normal(points.size).reshape(points.shape)
        return points / per_unit + mechanism.noise_stddev * draws
    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    measurement = opendp.m.make_gaussian(*space, scale=mechanism.noise_stddev * per_unit)
    rho = measurement.map(mechanism.sensitivity * per_unit)
    if rho > 1.000001 / (2 * mechanism.noise_multiplier**2):
        raise PrivacyRefused(f"OpenDP bounds the zCDP by {rho}, above what its noise multiplier accounts for.")
    noisy = np.asarray(measurement(points.ravel().tolist()), dtype=np.float64)
    return noisy.reshape(points.shape) / per_unit
