"""Distances between two sets of feature vectors: FID and KID.

Pure functions of float64 arrays, shape (images, features). Where the features come from is `features`' matter.
"""

from __future__ import annotations

import warnings

import numpy as np
from cleanfid.fid import frechet_distance

from privimage.errors import DataError

__all__ = ["fid", "kid", "weighted_fids", "weighted_kids"]

KERNEL_ROWS = 1024


def fid(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Frechet distance between the Gaussians fitted to two sets of features, at least 0.

    Few images bias it upwards, the more so the longer the features: compare only figures of equally many images.

    Raises:
        DataError: fewer than 2 images on a side, features of different length or not finite, or covariances for
            which the distance cannot be computed.

    Source: Heusel et al. (2017), Eq. 6, arXiv:1706.08500; computed by clean-fid.
    """
    a, b = _checked(features_a, features_b)
    try:
        with warnings.catch_warnings():
            # clean-fid calls scipy.linalg.sqrtm with an argument that SciPy has announced to drop.
            warnings.simplefilter("ignore", DeprecationWarning)
            distance = float(
                frechet_distance(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))
            )
    except ValueError as error:
        raise DataError(_no_distance("FID", a, b)) from error
    return max(_finite("FID", distance, a, b), 0.0)


def kid(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / features + 1)^3; may be slightly negative.

    Over all pairs of images. clean-fid averages over random subsets, which it draws from numpy's global generator:
    its figure changes from call to call, and has the same expectation.

    Raises:
        DataError: fewer than 2 images on a side, or features of different length or not finite.

    Source: Binkowski et al. (2018), Eq. 4 and section 4, arXiv:1801.01401.
    """
    sizes = (len(features_a), len(features_b))
    equal = [np.full((1, num), 1 / max(num, 1)) for num in sizes]
    return float(weighted_kids(features_a, features_b, *equal)[0])


def weighted_fids(
    features_a: np.ndarray, features_b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray
) -> np.ndarray:
    """FID with images weighted, for each row of the weights, which sum to 1; equal weights give that of `fid`.

    By symmetric eigenvalues instead of clean-fid's matrix root: much faster, for it is needed many times.

    Raises:
        DataError: as `fid`.
    """
    a, b = _checked(features_a, features_b)
    distances = [
        _frechet(*_weighted_gaussian(a, of_a), *_weighted_gaussian(b, of_b))
        for of_a, of_b in zip(weights_a, weights_b, strict=True)
    ]
    return np.array([_finite("FID", distance, a, b) for distance in distances])


def weighted_kids(
    features_a: np.ndarray, features_b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray
) -> np.ndarray:
    """KID with images weighted, for each row of the weights, which sum to 1; equal weights give that of `kid`.

    Raises:
        DataError: as `kid`.
    """
    a, b = _checked(features_a, features_b)
    between = _kernel_sums(a, b, weights_a, weights_b)
    values = _mean_over_pairs(a, weights_a) + _mean_over_pairs(b, weights_b) - 2 * between
    return np.array([_finite("KID", float(value), a, b) for value in values])


def _weighted_gaussian(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance."""
    mean = weights @ x
    centred = x - mean
    return mean, (centred * weights[:, None]).T @ centred / (1 - (weights**2).sum())


def _frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Frechet distance of two Gaussians: the product of two covariances has the eigenvalues of a symmetric matrix."""
    try:
        values, vectors = np.linalg.eigh(cov_a)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        common = np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ cov_b @ root), 0, None)).sum()
    except np.linalg.LinAlgError:
        return float("nan")  # which `_finite` words
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * common)


def _mean_over_pairs(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the kernel over pairs of different images."""
    squares = weights**2
    itself = squares @ ((x**2).sum(axis=1) / x.shape[1] + 1) ** 3
    mean: np.ndarray = (_kernel_sums(x, x, weights, weights) - itself) / (1 - squares.sum(axis=1))
    return mean


def _kernel_sums(x: np.ndarray, y: np.ndarray, weights_x: np.ndarray, weights_y: np.ndarray) -> np.ndarray:
    """Weighted sums of the kernel over all pairs, a block of rows at a time: the whole matrix may not fit into memory."""
    sums = np.zeros(len(weights_x))
    for start in range(0, len(x), KERNEL_ROWS):
        rows = slice(start, start + KERNEL_ROWS)
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        sums += np.einsum("ri,ir->r", weights_x[:, rows], kernel @ weights_y.T)
    return sums


def _checked(features_a: np.ndarray, features_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64, once they can be compared."""
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise DataError(
            f"Features of shapes {a.shape} and {b.shape} cannot be compared: expected (images, features) with the same "
            "number of features; use one extractor for both sets."
        )
    if min(len(a), len(b)) < 2:
        raise DataError(
            f"Found {len(a)} and {len(b)} images to compare, but FID and KID need at least 2 on each side: raise "
            "synthesize.num_images or hold out more test images."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("Some features are not finite, expected finite numbers: check the feature extractor's weights.")
    return a, b


def _finite(name: str, value: float, a: np.ndarray, b: np.ndarray) -> float:
    """The value, unless it is NaN or infinite."""
    if not np.isfinite(value):
        raise DataError(_no_distance(name, a, b))
    return value


def _no_distance(name: str, a: np.ndarray, b: np.ndarray) -> str:
    """The message for features that have no distance in floating point."""
    return (
        f"{name} of {len(a)} and {len(b)} images with {a.shape[1]} features came out undefined: compare more images "
        "than there are features, or use an extractor with smaller features."
    )
