"""The selection of PRIVIMAGE: categories that the sensitive images vote for, with noise (arXiv 2311.12850, Section 4)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privimage.config.privacy import PrivacyConfig
from privimage.data.facts import SensitiveFacts
from privimage.errors import Uncharged
from privimage.methods.selection import Picks
from privimage.methods.selections.categories import SomeCategories
from privimage.privacy.mechanisms import HistogramQuery, query_mechanism

__all__ = ["Semantic"]


class Semantic(SomeCategories):
    """Categories that the noisy query chose (PRIVIMAGE)."""

    asks_the_query: ClassVar[bool] = True
    in_words: ClassVar[str] = (
        "PRIVIMAGE (Li et al., USENIX Security 2024): noisy votes of the sensitive images select public images that look like them."
    )

    strategy: Literal["semantic"] = Field(default="semantic", description="Categories that the noisy query chose.")
    num_votes: int = Field(default=3, ge=1, le=100, description="Categories each sensitive image votes for.")

    def query(self, privacy: PrivacyConfig, facts: SensitiveFacts, num_categories: int) -> HistogramQuery:
        return query_mechanism(
            num_votes=self.num_votes,
            num_classes=len(facts.class_names),
            num_categories=num_categories,
            num_images=facts.num_train,
            query_error=privacy.query_error,
            query_noise_multiplier=privacy.query_noise_multiplier,
        )

    def picks(self, votes: NDArray[np.float64] | None, num_classes: int, num_categories: int) -> Picks:
        from privimage.methods.selections.assignment import assign_categories  # scipy is loaded where it computes

        if votes is None:
            raise Uncharged("A semantic selection was asked for without the votes of a query.")
        return assign_categories(votes, self.categories_per_class)

    def fields_of(self, stage: str) -> dict[str, Any]:
        """Of the query no more than the votes; of the selection no votes, which came with the query."""
        own = {"num_votes"} if stage == "query" else set(type(self).model_fields) - {"num_votes"}
        return self.model_dump(mode="json", include=own)
