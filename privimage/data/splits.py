"""Which split an image belongs to: its place in a secret order of all images, cut into parts of public sizes.

The sizes follow from the number of images and the configured fractions alone, so no number that is printed tells which
images there are. The order is that of a keyed digest of each image's own pixels. Zeroing out an image keeps its place, so
nothing else moves. Replacing one by another changes at most one image of each split: the images between the two places move
up by one, and at each border that they cross one image leaves a split and one enters the other. docs/privacy.md proves both.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privimage.errors import DataError

__all__ = ["SPLIT_FORM", "Split", "split_rows", "split_sizes"]

Split = Literal["train", "validation", "test"]

SPLIT_FORM = 2
"""Which way of splitting this is. Grants name it, because another one would train on other images of the same set."""


def split_sizes(num_images: int, test_fraction: float, validation_fraction: float) -> dict[Split, int]:
    """How many images each split has: a function of public numbers. A fraction above 0 gets at least one image."""
    test, validation = (
        max(1, round(num_images * share)) if share else 0 for share in (test_fraction, validation_fraction)
    )
    train = num_images - test - validation
    if train < 1:
        raise DataError(
            f"test_fraction {test_fraction:g} and validation_fraction {validation_fraction:g} leave {train} of {num_images} "
            "images for training: lower them."
        )
    return {"test": test, "validation": validation, "train": train}


def split_rows(
    digests: Sequence[bytes], labels: Sequence[int], sizes: dict[Split, int], key: bytes
) -> dict[Split, NDArray[np.int64]]:
    """The rows of each split, ascending, from the `pixel_digest` and label of every image and a secret key.

    Rows of equal digests are neighbours in the order, so that copies of an image share a split, unless a border happens to
    fall between them.
    """
    if sum(sizes.values()) != len(digests):
        raise DataError(f"The splits hold {sum(sizes.values())} images, but there are {len(digests)}.")
    order = np.array(
        sorted(
            range(len(digests)),
            key=lambda row: (hmac.digest(key, digests[row], hashlib.sha256), digests[row], labels[row], row),
        ),
        dtype=np.int64,
    )
    rows, start = {}, 0
    for split, size in sizes.items():
        rows[split] = np.sort(order[start : start + size])
        start += size
    return rows
