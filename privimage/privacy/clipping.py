"""Per-image clipped gradient sums, by vectorised per-image differentiation (torch.func)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from privimage.errors import ConfigError

__all__ = ["ClippedSum", "clip_and_sum", "clipped_gradient_sum"]

Parameters = Mapping[str, Tensor]
LossOfOneImage = Callable[..., Tensor]


LARGEST_NORM = 1e18


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """A sum of per-image gradients, each of norm at most `max_grad_norm`; it carries its own sensitivity."""

    value: Tensor
    max_grad_norm: float

    @property
    def sensitivity(self) -> float:
        """L2 change when one image is zeroed out."""
        return self.max_grad_norm


def clip_and_sum(gradients: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """Sum over images of their gradients, each scaled to norm at most `max_grad_norm`.

    Guarantee: no image changes the result by more than `max_grad_norm` in L2 norm, for every input; an image with a
    non-finite entry, or a norm above 1e18, counts as zero.

    Args:
        gradients: one tensor per parameter, (images, *shape of the parameter), float32; changed in place where not
            finite.

    Returns:
        Shape (number of all parameters,). Source: Abadi et al. (2016), Algorithm 1.
    """
    rows = [gradient.flatten(1) for gradient in gradients]
    norms = _row_norms(torch.stack([_row_norms(row) for row in rows], dim=1))
    # Beyond, the factor would lose its precision as a subnormal number; no training that works comes near.
    finite = norms < LARGEST_NORM
    # Shrunk by more than `_row_norms` can err, so that the bound holds for the rounded result too.
    shrink = 1 - 2.0**-14
    factors = (shrink * max_grad_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=shrink)
    factors = torch.where(finite, factors, torch.zeros_like(factors))
    for row in rows:
        # A zero factor does not silence an infinite or NaN entry: 0 * inf = NaN.
        row[~finite] = 0.0
    return torch.cat([factors @ row for row in rows])


def _row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of a float32 matrix, off by less than 2^-14 of it in whatever order a device adds up.

    At once, float32 loses 1e-3 of the norm of a million entries on a CPU; `block` terms lose at most block * 2^-25.
    """
    block = 256
    while rows.shape[1] > block:
        whole = rows.shape[1] // block * block
        blocks = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, block)), dim=2)
        rows = torch.cat([blocks, rows[:, whole:]], dim=1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def clipped_gradient_sum(
    loss_of_one_image: LossOfOneImage,
    parameters: Parameters,
    images: Sequence[Tensor],
    *,
    max_grad_norm: float,
    images_at_once: int,
) -> ClippedSum:
    """Sum over images of the clipped gradient of `loss_of_one_image(parameters, *one_image)`.

    Guarantee: the gradient of an image depends on that image only (no layer may mix images), is clipped once, after
    averaging over its noise draws inside the loss, and `images_at_once` does not change the result beyond rounding.

    Args:
        images: tensors whose first dimension counts images; all of equal length, which may be zero.
        images_at_once: how many per-image gradients are held in memory.
    """
    if not (max_grad_norm > 0 and max_grad_norm < float("inf")):
        raise ConfigError(f"max_grad_norm must be positive and finite, found {max_grad_norm}.")
    size = sum(parameter.numel() for parameter in parameters.values())
    total = torch.zeros(size, dtype=torch.float32, device=next(iter(parameters.values())).device)
    per_image = vmap(grad(loss_of_one_image), in_dims=(None, *[0] * len(images)), randomness="error")
    for start in range(0, len(images[0]), images_at_once):
        chunk = [tensor[start : start + images_at_once] for tensor in images]
        gradients = per_image(dict(parameters), *chunk)
        total += clip_and_sum([gradients[name].float() for name in parameters], max_grad_norm)
    return ClippedSum(value=total, max_grad_norm=max_grad_norm)
