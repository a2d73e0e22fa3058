"""Public categories for sensitive classes by their noisy votes: post-processing, it costs nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from privimage.errors import ConfigError

__all__ = ["assign_categories"]


def assign_categories(noisy_histogram: NDArray[np.float64], categories_per_class: int) -> list[list[int]]:
    """Give each class its `categories_per_class` categories, no category to two classes, best first.

    The assignment maximises the sum of the classes' vote shares over all assignments (Hungarian method), so no class
    is served before another. A share is a noisy count divided by the sum of its row's positive counts: a large class
    does not outvote a small one.

    Raises:
        ConfigError: more categories are asked for than there are.
    """
    num_classes, num_categories = noisy_histogram.shape
    if categories_per_class * num_classes > num_categories:
        raise ConfigError(
            f"selection.categories_per_class = {categories_per_class} asks for {categories_per_class * num_classes} "
            f"categories for {num_classes} classes, but the public set has {num_categories}: lower it to at most "
            f"{num_categories // num_classes}."
        )
    totals = np.maximum(np.maximum(noisy_histogram, 0).sum(axis=1, keepdims=True), 1.0)
    shares = noisy_histogram / totals
    slots = np.repeat(np.arange(num_classes), categories_per_class)
    chosen_slots, chosen = linear_sum_assignment(shares[slots], maximize=True)
    picks: list[list[int]] = [[] for _ in range(num_classes)]
    for slot, category in zip(chosen_slots, chosen, strict=True):
        picks[slots[slot]].append(int(category))
    return [sorted(categories, key=lambda category: -shares[c, category]) for c, categories in enumerate(picks)]
