"""Tensors of networks as safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

__all__ = ["save_weights"]


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors."""
    # Written by Python, because safetensors' own writer tells of a full disk by an error of its own.
    path.write_bytes(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}))
