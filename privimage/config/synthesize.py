"""Sampling, as far as every kind of generator has it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from privimage.config.form import Section

__all__ = ["SynthesizeConfig"]


class SynthesizeConfig(Section):
    """How many synthetic images, and of which classes (free: post-processing)."""

    num_images: int = Field(default=2000, ge=1, le=10_000_000, description="Synthetic images, of all classes together.")
    candidates: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Images drawn for each that is released, where feature means choose among them (selection.strategy images).",
    )
    from_public: Literal["none", "blended", "unchanged"] = Field(
        default="none",
        title="From public images",
        description="What feature means may choose beside drawn images: nothing, blends of two selected public images, or these "
        "unchanged: then see to their licence, and to the people in them.",
    )
    class_sizes: Literal["equal", "query"] = Field(
        default="equal",
        title="Sizes of the classes",
        description="The same number of images of each class, or in proportion to the noisy votes of the query (a tenth of the mean at "
        "least): then common classes are common among the synthetic images, too, and nothing more is paid for it.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="First of the per-image seeds (sampling is reproducible).")
