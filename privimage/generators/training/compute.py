"""How training is computed: settings that change speed, memory and rounding, never what is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from privimage.privacy.gradients import Backend, Precision

__all__ = ["IN_THIS_PROCESS", "ComputeSettings"]


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """Attributes:
    devices: which share the work; the first holds the state.
    rows_at_once: rows (images x noise draws) whose activations are held in memory at once, on each device.
    backend: how per-image gradients are computed.
    precision: of forward and backward passes; clipping, sums, noise and weights are float32.
    """

    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    rows_at_once: int = 256
    backend: Backend = "bookkeeping"
    precision: Precision = "float32"


IN_THIS_PROCESS = ComputeSettings()
