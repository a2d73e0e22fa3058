"""The Inception Score: are single images clearly of some category, and all together of many?"""

from __future__ import annotations

import numpy as np
from scipy.special import entr

__all__ = ["inception_scores"]


def inception_scores(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """exp of the mutual information of image and category, between 1 and the number of categories; one for each row
    of weights.

    It looks at synthetic images only, and grows with their number: compare figures of equally many images.

    Args:
        probabilities: of the categories, shape (images, categories).
        weights: of the images, shape (repeats, images); each row sums to 1.

    Source: Salimans et al. (2016), section 4, arXiv:1606.03498, without splits.
    """
    of_all = entr(weights @ probabilities).sum(axis=1)
    of_each = weights @ entr(probabilities).sum(axis=1)
    scores: np.ndarray = np.exp(of_all - of_each)
    return scores
