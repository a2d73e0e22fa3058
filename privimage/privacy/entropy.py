"""Randomness that nobody can regenerate: a ChaCha20 keystream under a fresh key from the operating system.

One `SecretRandom` serves one attempt of one stage. Its key lives in memory only; it is never derived from a seed of
the configuration, and never logged, stored or returned. Tests inject `InsecureRandomForTests`, whose use voids the
guarantee and is marked in the certificate.
"""

from __future__ import annotations

import os
import secrets
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["InsecureRandomForTests", "Random", "SecretRandom"]


class Random(Protocol):
    """A source of independent uniform and normal draws."""

    @property
    def guarantee(self) -> bool:
        """Whether draws are fit to carry a privacy guarantee."""
        ...

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from the uniform distribution on (0, 1)."""
        ...

    def normal(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from N(0, 1)."""
        ...

    def seed(self) -> int:
        """63 fresh bits, for randomness that carries no guarantee (augmentation, diffusion noise)."""
        ...


class SecretRandom:
    """Draws from a ChaCha20 keystream whose 256-bit key comes from the operating system."""

    guarantee = True

    def __init__(self) -> None:
        self._new_key()

    def _new_key(self) -> None:
        cipher = Cipher(algorithms.ChaCha20(secrets.token_bytes(32), bytes(16)), mode=None)
        self._keystream = cipher.encryptor()
        self._used = 0
        self._process = os.getpid()

    def _take(self, count: int) -> NDArray[np.uint64]:
        """`count` words of keystream; one key serves at most 64 GiB and a bit (its counter ends at 256 GiB).

        And one process: what is forked from it has a copy of the key, and would draw the same noise.
        """
        if self._used > 1 << 36 or os.getpid() != self._process:
            self._new_key()
        self._used += 8 * count
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype=np.uint64)

    def __repr__(self) -> str:
        return "SecretRandom()"

    def __getstate__(self) -> object:
        raise TypeError("SecretRandom must not be copied or stored: two copies would make the same noise")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """52-bit uniforms, centred in their cells so that neither 0 nor 1 occurs (with 53, the last one rounds to 1)."""
        bits = self._take(count)
        return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> NDArray[np.float64]:
        """By the inverse distribution function of a sign and a 255-bit uniform below 1/2, so they end at 18 deviations.

        A fixed number of bits a draw, so timing tells nothing. With 52 bits, as of `uniform`, there would be few values
        beyond five deviations, and none beyond eight: which of them occurs would tell what the noise was added to.
        """
        words = self._take(4 * count).reshape(4, count)
        below = words[3].astype(np.float64) + 0.5
        for word in (words[2], words[1], words[0] & np.uint64((1 << 63) - 1)):
            below = below * 2.0**-64 + word.astype(np.float64)
        size = ndtri(below * 2.0**-64)
        return np.asarray(np.where(words[0] >> np.uint64(63), size, -size), dtype=np.float64)

    def seed(self) -> int:
        return int(self._take(1)[0] >> np.uint64(1))


class InsecureRandomForTests:
    """Reproducible draws for tests. Whoever knows the seed can subtract the noise: there is no guarantee."""

    guarantee = False

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed))

    def uniform(self, count: int) -> NDArray[np.float64]:
        return self._generator.random(count)

    def normal(self, count: int) -> NDArray[np.float64]:
        return self._generator.standard_normal(count)

    def seed(self) -> int:
        return int(self._generator.integers(2**63))
