"""All public images with their own labels (PDP-Diffusion, Ghalebikesabi et al. 2023, arXiv 2302.13861)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from privimage.methods.selection import SomeImages

__all__ = ["All"]


class All(SomeImages):
    """All public images with their own labels; no query is asked."""

    keeps_public_labels: ClassVar[bool] = True
    in_words: ClassVar[str] = "All public images are taken, with their own labels (PDP-Diffusion)."

    strategy: Literal["all"] = Field(default="all", description="All public images with their own labels.")
