"""The plain loop over images that every engine is compared with, and rows to compare on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.methods.generators.diffusion import DenoiserConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squared_error(network: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A loss whose gradient differs from row to row and entry to entry."""
    out = network(*rows).flatten(1)
    weights = torch.linspace(0.5, 1.5, out.shape[1])
    return (weights * (out - 0.1).square()).mean(1)


def gradients_alone(
    module: nn.Module, loss_of_rows: Any, parameters: Mapping[str, Tensor], rows: Sequence[Tensor], draws: int
) -> Tensor:
    """(images, all parameters), by an ordinary backward pass for each draw of each image alone."""
    found = []
    for start in range(0, len(rows[0]), draws):
        own = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        for row in range(start, start + draws):
            one = [tensor[row : row + 1] for tensor in rows]
            loss = loss_of_rows(lambda *args, own=own: functional_call(module, own, args), *one)
            (loss.sum() / draws).backward()
        found.append(
            torch.cat(
                [value.grad.flatten() if value.grad is not None else 0 * value.flatten() for value in own.values()]
            )
        )
    return torch.stack(found).detach()


def clipped_loop(gradients: Tensor, max_grad_norm: float) -> Tensor:
    """The obvious sum, in float64; a gradient that is not finite counts as zero."""
    total = torch.zeros(gradients.shape[1], dtype=torch.float64)
    for gradient in gradients.double():
        if torch.isfinite(gradient).all():
            total += gradient * min(1.0, max_grad_norm / max(float(gradient.norm()), 1e-300))
    return total


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def moved(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Off its initial values: layers that begin at zero or one would hide mistakes."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(scale * torch.randn(parameter.shape, generator=seeded(number)))
    return module


@pytest.fixture(autouse=True)
def _quiet_opacus() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="opacus")
        yield


class DenoiserCase:
    """A real denoiser, with attention, and images x draws noise rows for it."""

    images, draws = 5, 3

    def __init__(self) -> None:
        config = DenoiserConfig(base_channels=8, channel_multipliers=(1, 2), attention_levels=(1,))
        denoiser = moved(new_denoiser(config, channels=3, num_classes=2, seed=0))
        assert isinstance(denoiser, Denoiser)
        self.denoiser, self.parameters = denoiser, parameters_of(denoiser)
        images = 2 * torch.rand(self.images, 3, 8, 8, generator=seeded()) - 1
        labels = torch.randint(0, 3, (self.images,), generator=seeded(1))
        count = self.images * self.draws
        self.rows = [
            images.repeat_interleave(self.draws, 0),
            labels.repeat_interleave(self.draws, 0),
            torch.rand(count, generator=seeded(2)) + 0.1,
            torch.randn(count, 3, 8, 8, generator=seeded(3)),
        ]

    def loss(
        self, network: Callable[..., Tensor], images: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        denoised = network(images + sigma.view(-1, 1, 1, 1) * noise, sigma, labels)
        return self.denoiser.weighted_error(denoised, images, sigma)


@pytest.fixture(scope="session")
def case() -> DenoiserCase:
    return DenoiserCase()
