"""Distances between two sets of feature vectors: FID and KID.

Pure functions of float64 arrays, shape (images, features). Where the features come from is `features`' matter.
"""

from __future__ import annotations

import warnings

import numpy as np
from cleanfid.fid import frechet_distance

from privimage.errors import DataError

__all__ = ["fid", "kid"]

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
    a, b = _checked(features_a, features_b)
    within_a = (_kernel_sum(a, a) - _kernel_diagonal_sum(a)) / (len(a) * (len(a) - 1))
    within_b = (_kernel_sum(b, b) - _kernel_diagonal_sum(b)) / (len(b) * (len(b) - 1))
    between = _kernel_sum(a, b) / (len(a) * len(b))
    return _finite("KID", within_a + within_b - 2 * between, a, b)


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the kernel over all pairs, a block of rows at a time: the whole matrix may not fit into memory."""
    blocks = (x[start : start + KERNEL_ROWS] for start in range(0, len(x), KERNEL_ROWS))
    return float(sum(((block @ y.T / x.shape[1] + 1) ** 3).sum() for block in blocks))


def _kernel_diagonal_sum(x: np.ndarray) -> float:
    """Sum of the kernel of each row with itself."""
    return float((((x**2).sum(axis=1) / x.shape[1] + 1) ** 3).sum())


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
