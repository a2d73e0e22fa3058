"""Each image of a batch is in exactly one block, whatever the size of the batch and the number of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from privimage.generators.diffusion.denoiser import new_denoiser
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.private_sum import BLOCK, PrivateSum
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune

DRAWS = 2


@dataclass
class Counting:
    """Stands where the gradient engine is, and counts the rows that it is given."""

    rows: list[int] = field(default_factory=list)

    def clipped_sum(self, parameters: dict[str, Tensor], rows: Sequence[Tensor], **_: Any) -> SimpleNamespace:
        self.rows.append(len(rows[0]))
        return SimpleNamespace(value=torch.zeros(sum(value.numel() for value in parameters.values())))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_an_image_is_counted_once_in_the_sum_however_blocks_fall(count: int, parts: int) -> None:
    """A block that is one image longer counts that one twice, and its gradient has twice the bound."""
    denoiser = new_denoiser(
        DenoiserConfig(base_channels=8, channel_multipliers=(1,)), channels=1, num_classes=2, seed=0
    )
    work = PrivateSum(
        generator=denoiser,
        config=DiffusionFinetune(noise_samples=DRAWS),
        max_grad_norm=1.0,
        compute=ComputeSettings(rows_at_once=2 * BLOCK * DRAWS),
    )
    work.to(torch.device("cpu"))
    engine = Counting()
    work._engine = engine  # type: ignore[assignment]
    job = {
        "images": torch.zeros(count, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(count, dtype=torch.int64),
        "seed": torch.zeros(1, dtype=torch.int64),
    }
    weights = torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])
    for part in range(parts):
        work.share(weights, job, part, parts)
    assert sum(engine.rows) == count * DRAWS
