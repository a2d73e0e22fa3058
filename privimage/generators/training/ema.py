"""Exponential moving average of weights, as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["ema_copy", "ema_update"]


def ema_copy(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detached copy to start an average from."""
    return {name: tensor.detach().clone() for name, tensor in parameters.items()}


@torch.no_grad()
def ema_update(average: dict[str, Tensor], parameters: Mapping[str, Tensor], *, decay: float, step: int) -> None:
    """Move `average` towards `parameters`, in place, after step number `step` (from 1).

    The decay is capped by (1 + step) / (10 + step), so that a short run is not dominated by where it began.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, tensor in parameters.items():
        average[name].lerp_(tensor.detach(), weight)
