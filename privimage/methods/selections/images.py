"""Single public images instead of categories: each gets class probabilities by noisy class means of features."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from privimage.methods.selection import SelectionStrategy

__all__ = ["Images"]


class Images(SelectionStrategy):
    """Public images by what noisy class means of the sensitive images' features tell of each of them."""

    asks_feature_means: ClassVar[bool] = True
    in_words: ClassVar[str] = (
        "The means of the features that a public network sees in each sensitive class were released, once, with noise. By these means "
        "each public image was given a probability for each class, and the images that are likeliest for a class were selected."
    )

    strategy: Literal["images"] = Field(
        default="images", description="Single images, by noisy class means of public features."
    )
    images_per_class: int = Field(
        default=5000,
        ge=2,
        le=10_000_000,
        title="Images per class",
        description="Public images selected for each class at most, the likeliest first; an image is selected for its likeliest class.",
    )

    @property
    def rows_of_a_class(self) -> int:
        return self.images_per_class

    def fields_of(self, stage: str) -> dict[str, Any]:
        """Of the space and the means nothing: how many images are taken later changes neither."""
        if stage != "select":
            return {"strategy": self.strategy}
        return super().fields_of(stage)
