"""The space in which class means are released: public features, whitened, ordered by what they tell apart. No torch.

It is fitted to public images alone, so whatever is projected into it is a function of the image and of public values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from privimage.errors import DataError

__all__ = ["FeatureSpace", "FeatureStatistics", "dimensions_worth_their_noise", "fit_space"]

_SHRINKAGE = 0.1
"""Share of the mean variance in the covariance that features are whitened by: directions of no variance stay finite."""

Rows = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """Directions in which features, less their public mean, are read; the first tell public categories apart best.

    Attributes:
        mean: of public features, (features,).
        directions: (features, dimensions); in each, the variance within public categories is about 1.
        told_apart: variance between public categories in each, in these units, never rising; (dimensions,).
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    told_apart: NDArray[np.float32]

    @property
    def dimensions(self) -> int:
        return int(self.directions.shape[1])

    def first(self, dimensions: int) -> FeatureSpace:
        """The space of the first so many directions."""
        return FeatureSpace(
            mean=self.mean, directions=self.directions[:, :dimensions], told_apart=self.told_apart[:dimensions]
        )

    def vectors(self, features: Rows) -> NDArray[np.float32]:
        """Vectors of norm 1, (images, dimensions), of features, (images, features): each of its own image alone.

        No refusal: whether one could be made of a sensitive image would tell of it. Where a feature is no finite number, neither is
        the vector, which is then left out of every sum.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            found = (features.astype(np.float32) - self.mean) @ self.directions
            unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return unit

    def save(self, file: Path) -> None:
        """Write it as safetensors."""
        save_file(
            {
                "mean": np.ascontiguousarray(self.mean),
                "directions": np.ascontiguousarray(self.directions),
                "told_apart": np.ascontiguousarray(self.told_apart),
            },
            file,
        )

    @classmethod
    def load(cls, file: Path) -> Self:
        """What `save` wrote."""
        held = load_file(file)
        return cls(mean=held["mean"], directions=held["directions"], told_apart=held["told_apart"])


class FeatureStatistics:
    """Sums over public images from which a space is fitted: of features by category, and of their products.

    Memory does not depend on the number of images: (categories + features) x features numbers.
    """

    def __init__(self, num_categories: int, num_features: int) -> None:
        self.counts = np.zeros(num_categories, dtype=np.int64)
        self.sums = np.zeros((num_categories, num_features))
        self.products = np.zeros((num_features, num_features))
        self._origin: NDArray[np.float64] | None = None

    def add(self, features: Rows, categories: NDArray[np.integer]) -> None:
        """Count in some images.

        Raises:
            DataError: a feature is not a finite number.
        """
        rows = features.astype(np.float64)
        if not np.isfinite(rows).all():
            raise DataError(
                "A feature of a public image is not a finite number: the backbone cannot be used for these images."
            )
        if self._origin is None:  # near the mean, so that products of large numbers do not cancel
            self._origin = rows.mean(0)
        rows -= self._origin
        self.products += rows.T @ rows
        np.add.at(self.sums, categories, rows)
        self.counts += np.bincount(categories, minlength=len(self.counts))

    @property
    def origin(self) -> NDArray[np.float64]:
        """What sums and products are relative to."""
        if self._origin is None:
            raise DataError("There are no public images to fit a space of features to.")
        return self._origin


def fit_space(statistics: FeatureStatistics) -> FeatureSpace:
    """The space of all directions of the features.

    Whitened by the covariance within categories, shrunk; turned so that the first directions tell categories apart best (Fisher's
    linear discriminant analysis). Beyond those that categories span, by the variance of the features themselves.

    Raises:
        DataError: there are fewer than two categories with images, or no image more than categories.
    """
    used = statistics.counts > 0
    counts, sums, total = statistics.counts[used], statistics.sums[used], int(statistics.counts.sum())
    if len(counts) < 2 or total <= len(counts):
        raise DataError(
            f"A space of features needs public images of two categories or more, and more images than categories; found {total} "
            f"images of {len(counts)}."
        )
    overall, means = sums.sum(0) / total, sums / counts[:, None]
    within = (statistics.products - (means * counts[:, None]).T @ means) / (total - len(counts))
    size = len(overall)
    mean_variance = np.trace(within) / size
    if not mean_variance > 0:
        raise DataError(
            "All features of a category's public images are the same: the backbone cannot be used for them."
        )
    within = (1 - _SHRINKAGE) * within + _SHRINKAGE * mean_variance * np.eye(size)
    variances, axes = np.linalg.eigh(within)
    whitening, coloring = axes / np.sqrt(variances) @ axes.T, axes * np.sqrt(variances) @ axes.T
    apart = (means - overall) @ whitening
    between = (apart * counts[:, None]).T @ apart / total
    found, turned = np.linalg.eigh(between)
    found, turned = found[::-1], turned[:, ::-1]
    # A mean over few images differs from others by chance, too: by so much in each direction.
    found = np.maximum(found - len(counts) / total, 0)
    known = int((found > 1e-6 * found[0]).sum())
    rest = turned[:, known:]
    raw = coloring @ rest
    turned[:, known:] = rest @ np.linalg.eigh(raw.T @ raw)[1][:, ::-1]
    return FeatureSpace(
        mean=(statistics.origin + overall).astype(np.float32),
        directions=(whitening @ turned).astype(np.float32),
        told_apart=np.where(np.arange(size) < known, found, 0).astype(np.float32),
    )


def dimensions_worth_their_noise(space: FeatureSpace, *, noise_in_means: float) -> int:
    """How many of the first directions tell classes apart best when each mean has noise of this standard deviation.

    Only public numbers enter: `told_apart`, and the noise over the mean size of a class. Vectors have norm 1, so each further
    direction makes all others shorter, while the noise stays. With L(k) the sum of `told_apart` over the first k, the distance
    of two classes over the spread of the difference of their scores is about L / sqrt(L + 2 noise^2 k^2), which is maximised.
    Directions beyond those that the categories span are taken to tell half of what the last one tells, if categories are so
    few that they span no more.

    Raises:
        DataError: no direction tells anything apart in so much noise.
    """
    apart = space.told_apart.astype(np.float64).copy()
    known = int((apart > 0).sum())
    if 0 < known < len(apart) and not _fades(apart[:known]):
        apart[known:] = apart[known - 1] / 2
    told = np.cumsum(apart)
    numbers = np.arange(1, len(apart) + 1)
    worth = told / np.sqrt(told + 2 * (noise_in_means * numbers) ** 2 + 1e-12)
    best = int(np.argmax(worth)) + 1
    # Here vectors are as long as what tells classes apart makes them, too: of large noise it is the honest measure.
    lengths = numbers + told
    if (told / np.sqrt(told + 2 * (noise_in_means * lengths) ** 2 + 1e-12)).max() < 0.5:
        raise DataError(
            f"The noise on class means would be {noise_in_means:.2g} of a vector's length, which hides all that they tell: give more "
            "sensitive images, a larger privacy.epsilon, or another selection.strategy."
        )
    return best


def _fades(apart: NDArray[np.float64]) -> bool:
    """Whether the last directions tell next to nothing beside the first: then the categories span all that there is."""
    return bool(apart[-1] < 1e-2 * apart[0])
