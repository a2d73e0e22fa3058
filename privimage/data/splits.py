"""Which split an image belongs to: a function of that image alone.

So one changed image changes one row of one split, and no other image moves. The privacy proof needs this: a shuffle
or a stratified split would let one image decide where others land, and neighbouring data sets would differ in many
training images.
"""

from __future__ import annotations

import hashlib
from typing import Literal

__all__ = ["Split", "split_of"]

Split = Literal["train", "validation", "test"]


def split_of(digest: bytes, test_fraction: float, validation_fraction: float) -> Split:
    """The split of an image, from its `pixel_digest` only: the same for identical images, wherever they are stored."""
    position = int.from_bytes(hashlib.sha256(b"privimage split v1" + digest).digest()[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"
