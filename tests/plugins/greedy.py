"""A strategy of selection: each class takes the categories that it voted for most, one class after the other."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privimage.config.privacy import PrivacyConfig
from privimage.data.facts import SensitiveFacts
from privimage.methods.selection import Picks, SelectionStrategy
from privimage.privacy.mechanisms import HistogramQuery, query_mechanism

__all__ = ["Greedy"]


class Greedy(SelectionStrategy):
    """Every image votes once; class by class the best that are left are taken."""

    asks_the_query: ClassVar[bool] = True
    in_words: ClassVar[str] = "Public images of the categories with the most noisy votes are selected, class by class."

    strategy: Literal["greedy"] = Field(default="greedy", description="The best that are left, class by class.")
    take: int = Field(default=2, ge=1, description="Categories for each class.")

    def query(self, privacy: PrivacyConfig, facts: SensitiveFacts, num_categories: int) -> HistogramQuery:
        return query_mechanism(
            num_votes=1,
            num_classes=len(facts.class_names),
            num_categories=num_categories,
            num_images=facts.num_train,
            query_error=privacy.query_error,
            query_noise_multiplier=privacy.query_noise_multiplier,
        )

    def picks(self, votes: NDArray[np.float64] | None, num_classes: int, num_categories: int) -> Picks:
        left = set(range(num_categories))
        picks: list[list[int]] = []
        for row in [] if votes is None else votes:
            picks.append(sorted(left, key=lambda category: (-row[category], category))[: self.take])
            left -= set(picks[-1])
        return picks
