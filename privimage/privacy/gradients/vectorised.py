"""Per-image gradients by vectorised differentiation of a whole network (torch.func): the oracle.

It knows no layers: whatever torch can differentiate under `vmap` is right. It holds a gradient and the intermediate
results of all layers for each image at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from privimage.privacy.clipping import ClippedSum, clipped_gradient_sum
from privimage.privacy.gradients.rows import LossOfRows, Precision, check_rows, losses_of

__all__ = ["Vectorised"]


@dataclass(frozen=True, kw_only=True)
class Vectorised:
    """See `GradientEngine`."""

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
        images = check_rows(rows, draws) // draws

        def loss_of_one_image(parameters: dict[str, Tensor], *own: Tensor) -> Tensor:
            def network(*args: Any, **kwargs: Any) -> Any:
                return functional_call(self.module, parameters, args, kwargs)

            low = self.precision == "bfloat16"
            with torch.autocast(own[0].device.type, dtype=torch.bfloat16) if low else nullcontext():
                return losses_of(self.loss_of_rows, network, own).mean()

        return clipped_gradient_sum(
            loss_of_one_image,
            {name: parameter.detach() for name, parameter in parameters.items()},
            [tensor.reshape(images, draws, *tensor.shape[1:]) for tensor in rows],
            max_grad_norm=max_grad_norm,
            images_at_once=max(1, rows_at_once // draws),
        )
