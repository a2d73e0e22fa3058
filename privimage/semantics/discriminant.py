"""What released class means tell of an image: probabilities of the classes, by a linear discriminant. No torch.

All of it is post-processing of noisy sums, and of public features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privimage.semantics.space import FeatureSpace

__all__ = ["COUNTED", "Discriminant", "class_means_of", "overconfidence", "summed_vectors", "temperature_of"]

COUNTED = 0.25
"""Of the length of a summed vector, the part that counts its image; all others tell what it looks like."""

_SMALLEST_CLASS = 0.1  # of the mean size: below that, noise may make anything of a class's number of images
_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_DRAWS = 20
_MOST_AT_ONCE = 50  # classes whose probabilities are compared in one draw


@dataclass(frozen=True, kw_only=True)
class Discriminant:
    """Class probabilities of features by the distance to released means, the same covariance taken for all classes.

    Attributes:
        space: where vectors of norm 1 lie; of as many dimensions as the means.
        means: float (classes, dimensions).
        temperature: what differences of scores are divided by.
    """

    space: FeatureSpace
    means: NDArray[np.float32]
    temperature: float

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Of each class, (images, classes), for features, (images, features): each row of its own image alone."""
        return self.of_vectors(self.space.vectors(features))

    def of_vectors(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """As `probabilities`, of vectors in the space."""
        return _softmax(_scores(vectors, self.means) / self.temperature)


def summed_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each image adds to its class's sum: its vector of norm 1, shortened, and a number that counts it; norm 1 again."""
    counted = np.full((len(vectors), 1), COUNTED, dtype=np.float32)
    return np.concatenate([np.float32(np.sqrt(1 - COUNTED**2)) * vectors, counted], axis=1)


def class_means_of(noisy_sums: NDArray[np.float64], num_images: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Means, (classes, dimensions), and noisy sizes, (classes,), of the noisy sums of `summed_vectors`.

    Post-processing. No size is below a tenth of the mean size, whatever the noise says.
    """
    sizes = np.maximum(noisy_sums[:, -1] / COUNTED, _SMALLEST_CLASS * num_images / len(noisy_sums))
    means = noisy_sums[:, :-1] / np.sqrt(1 - COUNTED**2) / sizes[:, None]
    return means.astype(np.float32), sizes


def temperature_of(means: NDArray[np.floating], overconfident: float) -> float:
    """For vectors of norm 1: their variance around the means in each direction, times `overconfidence`."""
    spread = max(1 - float((means.astype(np.float64) ** 2).sum(1).mean()), 0.05)
    return float(spread / means.shape[1] * overconfident)


def overconfidence(
    vectors: NDArray[np.float32], categories: NDArray[np.integer], *, num_classes: int, noise_in_means: float
) -> float:
    """How many times `temperature_of` must be raised for probabilities to be honest, as public categories tell.

    In each of some draws as many categories as there are classes stand for these: their means are taken from one half of their
    images and given noise; the factor is chosen by which the other half are likeliest, all draws together.

    Args:
        vectors: of public images, of norm 1, (images, dimensions); categories: theirs, (images,).
        noise_in_means: standard deviation of the noise on each number of a class's mean.
    """
    random = np.random.default_rng(0)
    first = random.random(len(categories)) < 0.5
    halves = [np.bincount(categories[part], minlength=int(categories.max()) + 1) for part in (first, ~first)]
    enough = np.flatnonzero((halves[0] > 0) & (halves[1] > 0))
    together = min(num_classes, len(enough), _MOST_AT_ONCE)
    if together < 2:
        return 3.0  # what two public sets of many categories told
    found = np.zeros(len(_FACTORS))
    for _ in range(_DRAWS):
        drawn = random.permutation(enough)[:together]
        means = np.stack([vectors[first & (categories == category)].mean(0) for category in drawn])
        means = means + random.normal(0, noise_in_means, means.shape)
        place = np.full(len(halves[0]), -1)
        place[drawn] = np.arange(together)
        rows = ~first & (place[categories] >= 0)
        scores, truth = _scores(vectors[rows], means), place[categories[rows]]
        for at, factor in enumerate(_FACTORS):
            likely = _softmax(scores / temperature_of(means, factor))[np.arange(len(truth)), truth]
            found[at] -= np.log(np.maximum(likely, 1e-12)).mean()
    return _FACTORS[int(np.argmin(found))]


def _scores(vectors: NDArray[np.floating], means: NDArray[np.floating]) -> NDArray[np.floating]:
    scores: NDArray[np.floating] = vectors @ means.T - (means**2).sum(1) / 2
    return scores


def _softmax(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (grown / grown.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
