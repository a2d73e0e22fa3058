"""The clipping rule of `privacy.clipping`, in two parts: norms of the pieces of a gradient, then one factor an image.

In parts, so that the norm of a layer's gradients is taken while they are still in the processor's cache.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from privimage.errors import ConfigError
from privimage.privacy.clipping import LARGEST_NORM, _row_norms

__all__ = ["SHRINK", "block_norms", "check_bound", "clip_factors", "row_norms"]

# Shrunk by more than `row_norms` can err, so that the bound holds for the rounded result too.
SHRINK = 1 - 2.0**-14

row_norms = _row_norms


def block_norms(rows: Tensor) -> Tensor:
    """Norms whose `row_norms` are those of `rows`: a first step in one call, if the length has a fitting divisor."""
    block = _divisor(rows.shape[1])
    if block is None:
        return row_norms(rows)[:, None]
    blocks: Tensor = torch.linalg.vector_norm(rows.unflatten(1, (-1, block)), dim=2)
    return blocks


@cache
def _divisor(length: int) -> int | None:
    """The largest divisor of `length` from 32 to 256."""
    return next((size for size in range(min(256, length), 31, -1) if length % size == 0), None)


def check_bound(max_grad_norm: float) -> None:
    """Raise ConfigError if `max_grad_norm` is no bound."""
    if not (max_grad_norm > 0 and math.isfinite(max_grad_norm)):
        raise ConfigError(f"max_grad_norm must be positive and finite, found {max_grad_norm}.")


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """What each image's gradient is multiplied with, shape (images,), from the norms of its pieces (images, pieces).

    Guarantee: a gradient times its factor has norm at most `max_grad_norm`; the factor is zero where a norm is not
    finite or above 1e18. Source: Abadi et al. (2016), Algorithm 1.
    """
    whole = row_norms(norms)
    factors = (SHRINK * max_grad_norm / whole.clamp_min(torch.finfo(whole.dtype).tiny)).clamp(max=SHRINK)
    return torch.where(whole < LARGEST_NORM, factors, torch.zeros_like(factors))
