"""Opacus's hooks as a second opinion: another library's per-image gradients give the same clipped sum."""

from __future__ import annotations

import warnings

import pytest
import torch

from privimage.config import DenoiserConfig
from privimage.generators.denoiser import new_denoiser
from privimage.generators.finetune import _loss_of_one_image
from privimage.privacy.clipping import clipped_gradient_sum

MAX_GRAD_NORM = 0.05


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("attention", [(), (1,)])
def test_the_clipped_sum_of_the_denoiser_is_the_one_of_opacus_hooks(draws: int, attention: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        # Opacus announces that its hooks do not see torch's own newer ones.
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        generator = torch.Generator().manual_seed(0)
        config = DenoiserConfig(base_channels=8, channel_multipliers=(1, 2), attention_levels=attention)
        denoiser = new_denoiser(config, channels=1, num_classes=3, seed=0)
        with torch.no_grad():
            for parameter in denoiser.parameters():  # the layers that begin at zero would hide mistakes
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        count = 5
        images = 2 * torch.rand(count, 1, 8, 8, generator=generator) - 1
        labels = torch.randint(0, 4, (count,), generator=generator)
        sigma = torch.rand(count, draws, generator=generator) + 0.1
        noise = torch.randn(count, draws, 1, 8, 8, generator=generator)
        ours = clipped_gradient_sum(
            _loss_of_one_image(denoiser),
            {name: parameter.detach() for name, parameter in denoiser.named_parameters()},
            [images, labels, sigma, noise],
            max_grad_norm=MAX_GRAD_NORM,
            images_at_once=2,
        )

        hooked = GradSampleModule(denoiser, batch_first=True, loss_reduction="sum")
        rows = images.repeat_interleave(draws, 0)
        noised = rows + sigma.flatten().view(-1, 1, 1, 1) * noise.flatten(0, 1)
        denoised = hooked(noised, sigma.flatten(), labels.repeat_interleave(draws))
        denoiser.weighted_error(denoised, rows, sigma.flatten()).sum().backward()
        gradients = torch.cat(
            [parameter.grad_sample.view(count, draws, -1).mean(1) for parameter in denoiser.parameters()], dim=1
        )
        hooked.remove_hooks()
    norms = gradients.norm(dim=1)
    assert (norms > MAX_GRAD_NORM).any(), "clipping has to bite for this comparison to mean anything"
    theirs = ((MAX_GRAD_NORM / norms).clamp(max=1.0)[:, None] * gradients).sum(0)
    assert torch.linalg.vector_norm(ours.value - theirs) <= 1e-3 * torch.linalg.vector_norm(theirs)
