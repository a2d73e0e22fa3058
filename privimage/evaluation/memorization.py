"""Do synthetic images copy training images? Nearest neighbours, against those among held-out images.

An image that resembles a training image shows nothing by itself: a generator that learned what images look like makes
such. So distances to training images are set against distances to held-out ones, which it cannot have copied. Weak
evidence: copies that are changed in a way that distances do not see are missed (`membership` looks at the generator).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privimage.errors import DataError

__all__ = ["LEAST", "Memorization", "Nearest", "memorization", "nearest"]

LEAST = 20
# Which share of held-out images is nearer to a training image than what is called a near-copy.
NEAR = 0.01
SHUFFLES = 999
SEED = 0  # of subsets and shuffles
# Together a block of distances of 32 MB.
_QUERIES, _AMONG = 1024, 8192


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Of each query: the distance to its nearest neighbour, float64, and the neighbour's row."""

    distances: NDArray[np.float64]
    rows: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """What the distances show, all from sensitive images: internal.

    Attributes:
        share_nearer_to_training: of synthetic images, those whose nearest neighbour among equally many training and
            held-out images is a training image; a half if nothing was memorized.
        p_value: how probable so large a share is if training and held-out images are exchangeable.
        subset: how many images of each were compared for it.
        median_to_training, median_to_test: of the distances to the nearest of these.
        near: the distance below which one speaks of a near-copy: `NEAR` of held-out images have a training image nearer.
        near_copies: synthetic images nearer than that to a training image; `exact_copies` are equal to one.
        exact_duplicates, near_duplicates: synthetic images equal, or nearer than that, to another synthetic one.
        pairs: (synthetic row, training row, distance), nearest first.
    """

    share_nearer_to_training: float
    p_value: float
    subset: int
    median_to_training: float
    median_to_test: float
    near: float
    near_copies: int
    exact_copies: int
    exact_duplicates: int
    near_duplicates: int
    pairs: tuple[tuple[int, int, float], ...]


def memorization(
    synthetic: NDArray[np.floating], training: NDArray[np.floating], test: NDArray[np.floating], *, pairs: int = 8
) -> Memorization:
    """Compare features, or pixels, of shape (images, features), by Euclidean distance.

    The test shuffles which images of the subset are called training images: synthetic images that share a neighbour
    count as what they are, one chance and not many.

    Raises:
        DataError: fewer than LEAST images of a kind, features of different length, or not finite.
    """
    sizes = {"synthetic": len(synthetic), "training": len(training), "test": len(test)}
    few = [f"{num:,} {name}" for name, num in sizes.items() if num < LEAST]
    if few:
        raise DataError(f"Memorization needs at least {LEAST} images of each kind, found {' and '.join(few)}.")
    generator = np.random.default_rng(SEED)
    subset = min(len(training), len(test))
    of_training = generator.permutation(len(training))[:subset]
    of_test = generator.permutation(len(test))[:subset]
    to_training, to_test = nearest(synthetic, training), nearest(synthetic, test)
    share, p_value = _share_nearer(
        nearest(synthetic, training[of_training]) if subset < len(training) else to_training,
        nearest(synthetic, test[of_test]) if subset < len(test) else to_test,
        subset,
        generator,
    )
    near = float(np.quantile(nearest(test, training).distances, NEAR))
    among_synthetic = nearest(synthetic, synthetic, others_only=True).distances
    closest = np.argsort(to_training.distances, kind="stable")[:pairs]
    return Memorization(
        share_nearer_to_training=share,
        p_value=p_value,
        subset=subset,
        median_to_training=float(np.median(to_training.distances)),
        median_to_test=float(np.median(to_test.distances)),
        near=near,
        near_copies=int((to_training.distances < near).sum()),
        exact_copies=int((to_training.distances == 0).sum()),
        exact_duplicates=int((among_synthetic == 0).sum()),
        near_duplicates=int(((among_synthetic < near) | (among_synthetic == 0)).sum()),
        pairs=tuple((int(row), int(to_training.rows[row]), float(to_training.distances[row])) for row in closest),
    )


def nearest(queries: NDArray[np.floating], among: NDArray[np.floating], *, others_only: bool = False) -> Nearest:
    """The nearest row of `among` for each query, in memory that does not grow with their product.

    Args:
        others_only: both are the same set, and no row is its own neighbour, though an equal one is.

    Raises:
        DataError: features of different length, or not finite.
    """
    if queries.ndim != 2 or among.ndim != 2 or queries.shape[1] != among.shape[1]:
        raise DataError(f"Features of shapes {queries.shape} and {among.shape} cannot be compared: use one extractor.")
    if not (np.isfinite(queries).all() and np.isfinite(among).all()):
        raise DataError("Some features are not finite, expected finite numbers: check the feature extractor's weights.")
    # Centred, so that float32 loses less.
    centre = among.mean(axis=0, dtype=np.float64)
    rows = np.zeros(len(queries), dtype=np.int64)
    for first in range(0, len(queries), _QUERIES):
        some = (queries[first : first + _QUERIES] - centre).astype(np.float32)
        best = np.full(len(some), np.inf, dtype=np.float32)
        for start in range(0, len(among), _AMONG):
            others = (among[start : start + _AMONG] - centre).astype(np.float32)
            # Without the query's own norm, which is the same for all.
            block = (others**2).sum(axis=1) - 2 * some @ others.T
            if others_only:
                own = np.arange(first, first + len(some))
                inside = (own >= start) & (own < start + len(others))
                block[inside, own[inside] - start] = np.inf
            found = block.argmin(axis=1)
            value = block[np.arange(len(some)), found]
            nearer = value < best
            best[nearer], rows[first : first + len(some)][nearer] = value[nearer], found[nearer] + start
    return Nearest(distances=_distances(queries, among, rows), rows=rows)


def _distances(
    queries: NDArray[np.floating], among: NDArray[np.floating], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exactly, so that equal images have distance 0."""
    found = np.empty(len(queries))
    for first in range(0, len(queries), _QUERIES):
        some = slice(first, first + _QUERIES)
        found[some] = np.linalg.norm(queries[some].astype(np.float64) - among[rows[some]], axis=1)
    return found


def _share_nearer(
    to_training: Nearest, to_test: Nearest, subset: int, generator: np.random.Generator
) -> tuple[float, float]:
    """The share of queries that are nearer to training images, and its p-value by shuffling."""
    # A tie is decided by a coin, or else images that are in both sets would count for one of them.
    nearer = np.where(
        to_training.distances == to_test.distances,
        generator.random(len(to_test.distances)) < 0.5,
        to_training.distances < to_test.distances,
    )
    chosen = np.where(nearer, to_training.rows, subset + to_test.rows)
    counts = np.bincount(chosen, minlength=2 * subset)
    share = float(nearer.mean())
    shuffled = np.array([counts[generator.permutation(2 * subset)[:subset]].sum() for _ in range(SHUFFLES)])
    return share, float((1 + (shuffled >= nearer.sum()).sum()) / (1 + SHUFFLES))
