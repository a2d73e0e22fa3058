"""No selection: nothing is pre-trained, and fine-tuning starts from random weights (DPDM, arXiv 2210.09929)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from privimage.methods.selection import SelectionStrategy

__all__ = ["NoSelection"]


class NoSelection(SelectionStrategy):
    """No pre-training; no query is asked."""

    selects: ClassVar[bool] = False
    in_words: ClassVar[str] = "No public images are selected."

    strategy: Literal["none"] = Field(default="none", description="No pre-training.")
