"""Images that are chosen together by released class means: what they are likeliest, and what is near the means together.

Post-processing: a function of released means and of images that were made of what was released, or are public.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.generators.sampling.herding import herd

__all__ = ["choose_by_means"]

_TOGETHER = 2000
"""Images of a class that are chosen together: for more, the time would grow with the square."""


def choose_by_means(
    vectors: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    means: NDArray[np.float32],
    wanted: Sequence[int],
) -> list[NDArray[np.int64]]:
    """Different rows for each class, as many as are `wanted`, in an order that tells nothing.

    A class takes images that are likeliest of it, by herding towards its mean. Where these are too few, others follow, those with
    the highest probability for it that no class has taken.

    Args:
        vectors: of the candidates in the space of the means, of norm 1, (candidates, dimensions).
        probabilities: theirs, (candidates, classes).
        means: (classes, dimensions).

    Raises:
        ValueError: there are fewer candidates than images wanted.
    """
    if sum(wanted) > len(vectors):
        raise ValueError(f"{sum(wanted)} images cannot be chosen of {len(vectors)}.")
    likeliest = probabilities.argmax(1)
    chosen: list[NDArray[np.int64]] = []
    for number, count in enumerate(wanted):
        own = np.flatnonzero(likeliest == number)
        chosen.append(own if len(own) <= count else own[_herded(vectors[own], means[number], count)])
    left = np.ones(len(vectors), dtype=bool)
    left[np.concatenate(chosen)] = False
    for number, count in enumerate(wanted):
        if missing := count - len(chosen[number]):
            free = np.flatnonzero(left)
            more = free[np.argsort(-probabilities[free, number], kind="stable")[:missing]]
            left[more] = False
            chosen[number] = np.concatenate([chosen[number], more])
    # The order in which images were taken says how well they fit: the first ones would be a favourable sample.
    return [np.random.default_rng(number).permutation(rows) for number, rows in enumerate(chosen)]


def _herded(vectors: NDArray[np.float32], mean: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of `count` vectors; of many, some thousand are chosen together, of every so-manieth candidate."""
    parts = -(-count // _TOGETHER)
    found = []
    for part in range(parts):
        places = np.arange(part, len(vectors), parts)
        own = torch.from_numpy(np.ascontiguousarray(vectors[places]))
        rows = herd(own, torch.from_numpy(mean), min(len(range(part, count, parts)), len(places)))
        found.append(places[rows.numpy()])
    return np.concatenate(found)
