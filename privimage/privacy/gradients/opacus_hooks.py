"""Per-image gradients by Opacus's hooks: for comparison. Memory grows with the number of draws."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privimage.errors import ConfigError
from privimage.privacy.clipping import ClippedSum, check_bound, clip_and_sum
from privimage.privacy.gradients.rows import LossOfRows, Precision, autocast, chunks, losses_of

__all__ = ["OpacusHooks"]


@dataclass(frozen=True, kw_only=True)
class OpacusHooks:
    """See `GradientEngine`. Works on a copy of the module."""

    module: nn.Module
    loss_of_rows: LossOfRows
    precision: Precision = "float32"
    _hooked: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            # Opacus announces that its hooks do not see torch's own newer ones.
            warnings.simplefilter("ignore")
            from opacus.grad_sample import GradSampleModule

            hooked = GradSampleModule(deepcopy(self.module), batch_first=True, loss_reduction="sum")
        object.__setattr__(self, "_hooked", hooked)

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
        own = dict(self._hooked._module.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                own[name].copy_(parameter)
        total = torch.zeros(sum(own[name].numel() for name in parameters), device=rows[0].device)
        for chunk in chunks(rows, draws, rows_at_once):
            self._hooked.zero_grad(set_to_none=True)
            with autocast(rows[0].device, self.precision):
                loss = losses_of(self.loss_of_rows, self._hooked, chunk).sum() / draws
            with warnings.catch_warnings():
                # torch announces that a first layer has no gradient of its input.
                warnings.simplefilter("ignore")
                loss.backward()
            for name in parameters:
                if getattr(own[name], "grad_sample", None) is None:
                    raise ConfigError(f"The parameter {name} got no gradient: no layer that reaches the loss uses it.")
            total += clip_and_sum(
                [own[name].grad_sample.unflatten(0, (-1, draws)).sum(1).float() for name in parameters], max_grad_norm
            )
        self._hooked.zero_grad(set_to_none=True)
        return ClippedSum(value=total, max_grad_norm=max_grad_norm)
