"""As many categories as the semantic selection takes, drawn at random: what the query is worth is seen beside this."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privimage.methods.selection import Picks
from privimage.methods.selections.categories import SomeCategories

__all__ = ["Random"]


class Random(SomeCategories):
    """Categories drawn at random; no query is asked."""

    in_words: ClassVar[str] = "Public images of categories drawn at random are selected."

    strategy: Literal["random"] = Field(default="random", description="As many categories, drawn at random.")

    def picks(self, votes: NDArray[np.float64] | None, num_classes: int, num_categories: int) -> Picks:
        """A function of public numbers alone: nothing of the sensitive images, or of their votes, can enter."""
        drawn = np.random.default_rng(self.seed).permutation(num_categories)[: num_classes * self.categories_per_class]
        return [list(map(int, chosen)) for chosen in drawn.reshape(num_classes, self.categories_per_class)]
