"""Per-image gradients by vectorised differentiation of a whole network (torch.func): the oracle.

It knows no layers: whatever torch can differentiate under `vmap` is right. It holds a gradient and the intermediate
results of all layers for each image at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privimage.privacy.clipping import ClippedSum, check_bound, clip_and_sum
from privimage.privacy.gradients.rows import LossOfRows, Precision, autocast, chunks, losses_of

__all__ = ["Vectorised"]


@dataclass(frozen=True, kw_only=True)
class Vectorised:
    """See `GradientEngine`. Random numbers inside the loss are an error."""

    module: nn.Module
    loss_of_rows: LossOfRows
    precision: Precision = "float32"

    def clipped_sum(
        self,
        parameters: Mapping[str, Tensor],
        rows: Sequence[Tensor],
        *,
        draws: int,
        max_grad_norm: float,
        rows_at_once: int,
    ) -> ClippedSum:
        check_bound(max_grad_norm)
        parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        per_image = vmap(grad(self._loss_of_one_image), in_dims=(None, *[0] * len(rows)), randomness="error")
        total = torch.zeros(
            sum(parameter.numel() for parameter in parameters.values()),
            device=next(iter(parameters.values())).device,
        )
        for chunk in chunks(rows, draws, rows_at_once):
            gradients = per_image(parameters, *[tensor.unflatten(0, (-1, draws)) for tensor in chunk])
            total += clip_and_sum([gradients[name].float() for name in parameters], max_grad_norm)
        return ClippedSum(value=total, max_grad_norm=max_grad_norm)

    def _loss_of_one_image(self, parameters: dict[str, Tensor], *own: Tensor) -> Tensor:
        """Mean over the image's draws."""

        def network(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, parameters, args, kwargs)

        with autocast(own[0].device, self.precision):
            return losses_of(self.loss_of_rows, network, own).mean()
