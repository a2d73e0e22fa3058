"""How much memory the per-image gradients of one image take, known before they are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from privimage.privacy.gradients.engine import Backend
from privimage.privacy.gradients.rows import LossOfRows, losses_of

__all__ = ["bytes_per_image"]

# Peak of a backend in units of what an ordinary backward pass keeps, beside one gradient an image. Measured on U-Nets
# of 1.2 and 3.8 M parameters, rounded up (docs/benchmarks.md).
_PEAK: dict[Backend, float] = {"bookkeeping": 1.75, "opacus": 2.5, "vmap": 5.0}


def bytes_per_image(
    module: nn.Module,
    loss_of_rows: LossOfRows,
    parameters: Mapping[str, Tensor],
    rows: Sequence[Tensor],
    *,
    backend: Backend = "bookkeeping",
) -> int:
    """Bytes that an engine holds at most for each image of a physical batch; an estimate from one forward pass.

    Args:
        rows: the draws of one image.
    """
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
    weights = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    kept: dict[int, int] = {}

    def network(*args: Any, **kwargs: Any) -> Any:
        return functional_call(module, own, args, kwargs)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = losses_of(loss_of_rows, network, rows)
    del losses
    gradient = 4 * sum(parameter.numel() for parameter in parameters.values())
    return int(_PEAK[backend] * sum(kept.values())) + gradient
