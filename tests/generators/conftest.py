"""A real, small denoiser; one thread, because a second one would only wait for the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.methods.generators.diffusion import DenoiserConfig

NewDenoiser = Callable[..., Denoiser]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def awake() -> NewDenoiser:
    """Makes denoisers moved off their initial zeros, where the raw network's output would be zero for any input."""

    def make(channels: int = 1, num_classes: int = 2, seed: int = 0, **config: object) -> Denoiser:
        settings = {"base_channels": 8, "channel_multipliers": (1, 2), **config}
        denoiser = new_denoiser(
            DenoiserConfig.model_validate(settings), channels=channels, num_classes=num_classes, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return denoiser

    return make
