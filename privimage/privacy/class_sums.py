"""Noisy sums of bounded vectors, one for each class. No torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.privacy.counts import add_lattice_noise
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums

__all__ = ["Rows", "class_sums", "noisy_class_sums"]

# Vectors are summed as integers, in units of 2^-20 of their largest norm: the sums are exact in any order, and rounding
# moves the mean of a class by less than one unit. 2^42 images would fit into 64 bits.
PER_UNIT = 1 << 20
# Of vectors that are in memory together, in some copies: by a fixed number of rows they could be tens of gigabytes.
NUMBERS_AT_ONCE = 1 << 22


class Rows(Protocol):
    """Vectors, (images, dimension): an array, or something that computes some of its rows when it is asked for them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating]: ...


def noisy_class_sums(
    vectors: Rows,
    private_labels: NDArray[np.int64],
    mechanism: ClassSums,
    *,
    insecure_random: InsecureRandomForTests | None = None,
) -> NDArray[np.float64]:
    """The released sums, (classes, dimension): those of `class_sums`, with exact discrete Gaussian noise on each number.

    Guarantee: `mechanism.event`, whatever the vectors are, if each is a function of its own image and of public values.
    """
    sums = class_sums(vectors, private_labels, mechanism)
    return add_lattice_noise(sums, mechanism, per_unit=PER_UNIT, insecure_random=insecure_random)


def class_sums(vectors: Rows, private_labels: NDArray[np.int64], mechanism: ClassSums) -> NDArray[np.int64]:
    """Exact sums of the vectors of each class, (classes, dimension), in units of 1 / PER_UNIT: private, never to be shown.

    A vector (a row of `vectors`, (images, dimension)) whose norm is above 1 is scaled to norm 1; one that is not finite
    counts as zero. Coordinates are rounded towards zero, so that no norm grows.

    Guarantee: zeroing out one image changes one row by an integer vector of norm at most PER_UNIT.

    Raises:
        DataError: a label is out of range, or there are not as many vectors and numbers as were accounted for.
    """
    if vectors.shape != (mechanism.num_images, mechanism.dimension) or private_labels.shape != vectors.shape[:1]:
        raise DataError("The vectors do not fit the class sums: they need one of the stated dimension for each image.")
    if private_labels.min() < 0 or private_labels.max() >= mechanism.num_classes:
        raise DataError("A label of the class sums is out of range.")
    sums = np.zeros((mechanism.num_classes, mechanism.dimension), dtype=np.int64)
    at_once = max(1, NUMBERS_AT_ONCE // mechanism.dimension)
    for start in range(0, mechanism.num_images, at_once):
        rows = _bounded(vectors[start : start + at_once])
        labels = private_labels[start : start + at_once]
        for label in range(mechanism.num_classes):
            sums[label] += rows[labels == label].sum(axis=0)
    return sums


def _bounded(vectors: NDArray[np.floating]) -> NDArray[np.int64]:
    """Each row with norm at most 1, as integers in units of 1 / PER_UNIT."""
    rows = vectors.astype(np.float64)
    rows[~np.isfinite(rows).all(axis=1)] = 0.0
    # By the largest number first: the squares of a huge row would be infinite. Rows of norm below 1 stay what they are.
    peaks = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1.0)
    rows /= peaks
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1 / peaks)
    points = np.trunc(rows * PER_UNIT).astype(np.int64)
    # Not trusted to floating point: no row is known to be too long, but one that were would not count.
    points[(points**2).sum(axis=1) > PER_UNIT**2] = 0
    return points
