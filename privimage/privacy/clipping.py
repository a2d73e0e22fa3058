"""The clipping rule: each image's gradient is scaled to a norm of at most `max_grad_norm`, then all are added up.

In parts, so that an engine (`privacy.gradients`) takes the norm of a layer's gradients while they are still in the
processor's cache: norms of the pieces of a gradient, then one factor an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from privimage.errors import ConfigError

__all__ = ["ClippedSum", "block_norms", "check_bound", "clip_and_sum", "clip_factors", "row_norms"]

# Beyond, the factor would lose its precision as a subnormal number; no training that works comes near.
LARGEST_NORM = 1e18
# Shrunk by more than `row_norms` can err, so that the bound holds for the rounded result too.
SHRINK = 1 - 2.0**-14
# Terms that float32 adds up without losing much.
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """A sum of per-image gradients, each of norm at most `max_grad_norm`; it carries its own sensitivity."""

    value: Tensor
    max_grad_norm: float

    @property
    def sensitivity(self) -> float:
        """L2 change when one image is zeroed out."""
        return self.max_grad_norm


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


def clip_and_sum(gradients: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """Sum over images of their gradients, each scaled to norm at most `max_grad_norm`.

    Guarantee: no image changes the result by more than `max_grad_norm` in L2 norm, for every input; an image with a
    non-finite entry, or a norm above 1e18, counts as zero.

    Args:
        gradients: one tensor per parameter, (images, *shape of the parameter), float32; changed in place where not
            finite.

    Returns:
        Shape (number of all parameters,).
    """
    rows = [gradient.flatten(1) for gradient in gradients]
    factors = clip_factors(torch.stack([row_norms(row) for row in rows], dim=1), max_grad_norm)
    for row in rows:
        # A zero factor does not silence an infinite or NaN entry: 0 * inf = NaN.
        row[factors == 0] = 0.0
    return torch.cat([factors @ row for row in rows])


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of a float32 matrix, off by less than 2^-14 of it in whatever order a device adds up.

    At once, float32 loses 1e-3 of the norm of a million entries on a CPU; `_BLOCK` terms lose at most _BLOCK * 2^-25.
    """
    while rows.shape[1] > _BLOCK:
        whole = rows.shape[1] // _BLOCK * _BLOCK
        blocks = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _BLOCK)), dim=2)
        rows = torch.cat([blocks, rows[:, whole:]], dim=1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def block_norms(rows: Tensor) -> Tensor:
    """Norms whose `row_norms` are those of `rows`: a first step in one call, if the length has a fitting divisor."""
    block = _divisor(rows.shape[1])
    if block is None:
        return row_norms(rows)[:, None]
    blocks: Tensor = torch.linalg.vector_norm(rows.unflatten(1, (-1, block)), dim=2)
    return blocks


@cache
def _divisor(length: int) -> int | None:
    """The largest divisor of `length` from 32 to `_BLOCK`."""
    return next((size for size in range(min(_BLOCK, length), 31, -1) if length % size == 0), None)
