"""Precision and recall: are the synthetic images where the real ones are, and the other way round?

A set's manifold is the union of balls around its features, each as large as the distance to the k-th nearest other.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from privimage.errors import DataError

__all__ = ["NEIGHBOURS", "inside"]

NEIGHBOURS = 3
LARGEST = 1e150  # its square is still finite


def inside(features: np.ndarray, manifold_of: np.ndarray) -> np.ndarray:
    """Which rows lie in the manifold of another set, which needs more than NEIGHBOURS rows; bool, shape (rows,).

    Precision is the share of synthetic rows in the manifold of real ones, recall the share of real rows in the manifold
    of synthetic ones. Both depend on how many rows make the manifold: compare figures of equally many images.

    Raises:
        DataError: features are so large that their distances overflow.

    Source: Kynkaanniemi et al. (2019), Eqs. 1 and 2, with their k = 3; arXiv:1904.06991.
    """
    if max(np.abs(features).max(), np.abs(manifold_of).max()) > LARGEST:
        raise DataError(f"Some features are above {LARGEST:g}, so that distances overflow: use another extractor.")
    # Without an argument, no row counts as its own neighbour, though an equal one does.
    distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(manifold_of).kneighbors()
    radii = distances[:, -1]
    blocks = pairwise_distances_chunked(
        features, manifold_of, reduce_func=lambda block, _: (block <= radii).any(axis=1)
    )
    return np.concatenate(list(blocks))
