"""The noisy semantic query: which public categories do the sensitive images of each class look like?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.errors import DataError
from privimage.privacy.mechanisms import HistogramQuery

__all__ = ["top_votes", "vote_histogram"]


def top_votes(logits: Tensor, num_votes: int) -> NDArray[np.int64]:
    """The `num_votes` distinct categories of highest score per image, (batch, num_votes); a NaN scores lowest."""
    return torch.nan_to_num(logits, nan=-torch.inf).topk(num_votes, dim=1).indices.numpy()


def vote_histogram(
    votes: NDArray[np.int64], private_labels: NDArray[np.int64], mechanism: HistogramQuery
) -> NDArray[np.int64]:
    """Exact counts h[class, category]: private, never to be stored or shown.

    Guarantee: zeroing out one image changes `mechanism.num_votes` cells of one row by 1 each.

    Raises:
        DataError: a label or vote out of range, or an image that votes twice for a category.
    """
    if votes.shape != (len(private_labels), mechanism.num_votes):
        raise DataError("The votes do not fit the query: each image must vote exactly num_votes times.")
    if len(votes):
        ordered = np.sort(votes, axis=1)
        twice = mechanism.num_votes > 1 and bool((ordered[:, 1:] == ordered[:, :-1]).any())
        inside = ordered.min() >= 0 and ordered.max() < mechanism.num_categories
        classes = private_labels.min() >= 0 and private_labels.max() < mechanism.num_classes
        if twice or not inside or not classes:
            raise DataError("A vote or label is out of range, or an image votes twice for one category.")
    histogram = np.zeros((mechanism.num_classes, mechanism.num_categories), dtype=np.int64)
    np.add.at(histogram, (private_labels[:, None], votes), 1)
    return histogram
