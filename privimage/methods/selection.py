"""What a strategy of selection declares: whether it asks a query, whether it selects, and whose labels it keeps.

Stages, keys, plan, preflight and certificate ask these questions, and never which strategy it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privimage.config.form import Section
from privimage.config.privacy import PrivacyConfig
from privimage.data.facts import SensitiveFacts
from privimage.privacy.mechanisms import HistogramQuery

__all__ = ["Picks", "SelectionStrategy", "SomeImages"]

Picks = list[list[int]] | None
"""The categories of each sensitive class, no category twice; None: all images, each with its own category."""


class SelectionStrategy(Section):
    """Which public images the generator is pre-trained on, and who says so.

    Attributes:
        asks_the_query: whether the sensitive images vote on it. If not, no query is made, and none is paid for.
        asks_feature_means: whether noisy class means of their features say what public images show; likewise.
        selects: whether there is a selection; if not, nothing is pre-trained.
        keeps_public_labels: whether the generator learns the public categories, and the sensitive classes later.
        in_words: a sentence for the datasheet of a release.
    """

    asks_the_query: ClassVar[bool] = False
    asks_feature_means: ClassVar[bool] = False
    selects: ClassVar[bool] = True
    keeps_public_labels: ClassVar[bool] = False

    in_words: ClassVar[str]

    strategy: str = Field(description="Name of the strategy.")

    def query(self, privacy: PrivacyConfig, facts: SensitiveFacts, num_categories: int) -> HistogramQuery | None:
        """The query's mechanism, from settings and public facts; None where no query is asked."""
        return None

    def check(self, num_classes: int, num_categories: int) -> None:
        """Raise ConfigError, before anything is spent, if so many public categories cannot be selected from."""

    def picks(self, votes: NDArray[np.float64] | None, num_classes: int, num_categories: int) -> Picks:
        """The chosen categories of each class.

        Post-processing: a function of what the query released, `votes` (classes, categories), and public numbers.
        `votes` is None where no query is asked.
        """
        return None

    def max_rows(self, num_images: int) -> int | None:
        """How many of the `num_images` public images are selected at most; None = all of the chosen categories."""
        return None

    @property
    def rows_of_a_class(self) -> int | None:
        """How many images are selected for each class at most, where single ones are; None = all that are likeliest of it."""
        return None

    @property
    def seed_of_rows(self) -> int:
        """Seed of which images are taken under `max_rows`."""
        return 0

    def fields_of(self, stage: str) -> dict[str, Any]:
        """The settings that can change what a stage makes: they go into its key, and another key of a charged stage is charged.

        All of them, unless a strategy knows better.
        """
        return self.model_dump(mode="json")


class SomeImages(SelectionStrategy):
    """A strategy that selects, and can be told to select less."""

    max_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        title="Max fraction",
        description="Select at most this share of the public images; none = all images of the chosen categories.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of the random choices.")

    def max_rows(self, num_images: int) -> int | None:
        return None if self.max_fraction is None else max(1, int(self.max_fraction * num_images))

    @property
    def rows_of_a_class(self) -> int | None:
        """How many images are selected for each class at most, where single ones are; None = all that are likeliest of it."""
        return None

    @property
    def seed_of_rows(self) -> int:
        return self.seed
