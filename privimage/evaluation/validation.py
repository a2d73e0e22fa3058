"""Validation counts: how many sensitive validation images each classifier recognises. What leaves gets noise first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.privacy.mechanisms import ValidationCount

__all__ = ["correct_counts"]


def correct_counts(hits: Sequence[NDArray[np.bool_]], mechanism: ValidationCount) -> NDArray[np.int64]:
    """Exact counts, one a classifier: private, never to be stored or shown.

    Guarantee: an image adds at most `mechanism.votes_each` to each of `mechanism.num_candidates` counts, and nothing if
    it is zeroed out.

    Args:
        hits: for each classifier, whether each of its trainings recognises each image, shape (votes_each, num_images).

    Raises:
        DataError: there are more or fewer than were accounted for.
    """
    expected = (mechanism.votes_each, mechanism.num_images)
    if len(hits) != mechanism.num_candidates or any(each.shape != expected or each.dtype != bool for each in hits):
        raise DataError("The classifiers or images do not fit the validation that was charged.")
    return np.array([int(each.sum()) for each in hits], dtype=np.int64)
