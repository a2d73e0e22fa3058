"""Which images a run is about, and the form that they are brought into."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from privimage.config.form import Section
from privimage.config.sources import SourceConfig

__all__ = ["ImageConfig", "PublicConfig", "SensitiveConfig"]


class ImageConfig(Section):
    """The canonical form that all images, public and sensitive, are brought into."""

    resolution: int = Field(ge=8, le=256, multiple_of=4, description="Height and width in pixels.")
    channels: Literal[1, 3] = Field(description="1 = grayscale, 3 = RGB.")
    resize: Literal["crop", "pad", "stretch"] = Field(
        default="crop", description="How a non-square image becomes square: centre crop, pad with black, or stretch."
    )


class SensitiveConfig(Section):
    """The sensitive, labelled images. One image is the unit of privacy."""

    train: SourceConfig = Field(description="Images that the release is made from.")
    test: SourceConfig | None = Field(
        default=None, title="Test", description="Held-out images for internal evaluation; none = split off `train`."
    )
    validation_fraction: float = Field(
        default=0.0, ge=0.0, lt=0.5, description="Share of `train` held out for validation (never trained on)."
    )
    test_fraction: float = Field(
        default=0.2, ge=0.0, lt=0.9, description="Share of `train` held out for testing; ignored if `test` is given."
    )
    shared_ledger: str | None = Field(
        default=None,
        max_length=64,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        title="Shared ledger",
        description="Name of one budget for all data sets that show the same people; none = a budget of its own.",
    )


class PublicConfig(Section):
    """The public, labelled images. Nothing about them is protected."""

    source: SourceConfig = Field(description="Where the public images come from; its labels are the categories.")
