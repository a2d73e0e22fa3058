"""Pixels as networks see them, and back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["from_pixels", "to_pixels"]


def from_pixels(images: Tensor) -> Tensor:
    """uint8 NCHW in 0..255 => float32 NCHW in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """float NCHW in [-1, 1] => uint8 NCHW, rounded (not truncated)."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
