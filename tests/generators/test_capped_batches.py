"""Fine-tuning under a cap: no step reads more images than the cap that is accounted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.training.finetune import finetune, start_state
from privimage.methods.generators.diffusion import DiffusionFinetune
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.mechanisms import DPSGDMechanism

UNCAPPED = DPSGDMechanism(
    num_images=40, expected_batch_size=30, num_steps=6, restart_allowance=0, max_grad_norm=0.5, noise_multiplier=1.0
)


class EveryCoinFallsHeads(SecretRandom):
    """All images are drawn in every step, so that a batch is as large as it can be; all else is real."""

    def uniform(self, count: int) -> NDArray[np.float64]:
        return super().uniform(count) * 0.5


class WatchedImages(np.ndarray[Any, np.dtype[np.uint8]]):
    """Images that remember how many were read at a time."""

    read: list[int]

    def __getitem__(self, rows: Any) -> Any:
        self.read.append(len(rows))
        return np.asarray(self)[rows]


@pytest.mark.parametrize(("cap", "largest"), [(None, 40), (30, 30), (40, 40)])
def test_no_step_reads_more_images_than_the_cap(awake: Callable[..., Denoiser], cap: int | None, largest: int) -> None:
    denoiser = awake()
    images = np.zeros((40, 1, 8, 8), dtype=np.uint8).view(WatchedImages)
    images.read = []
    finetune(
        denoiser,
        images,
        np.arange(40) % 2,
        replace(UNCAPPED, largest_batch_size=cap),
        DiffusionFinetune(noise_samples=1),
        state=start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()}),
        random=EveryCoinFallsHeads(),
        on_step=lambda state: None,
    )
    assert images.read == [largest] * 6
