"""Canaries in gradient space: made-up images whose gradient is one coordinate, through the real fine-tuning.

A canary is the strongest image there can be: its gradient is far longer than the clipping bound, and orthogonal to that
of every other. It is trained on by `finetune` itself, with its sampling, engine, clipping, noise and optimizer. One that
is not inserted lies at its place as an image without a gradient, which is the relation that is accounted. What a step
released along a canary's coordinate is read off the optimizer's state, as anybody could who sees all of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privimage.errors import ConfigError
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.training.compute import IN_THIS_PROCESS, ComputeSettings
from privimage.generators.training.finetune import FinetuneState, finetune, start_state
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionFinetune
from privimage.privacy.audit import LEAST_CANARIES, CanaryScores
from privimage.privacy.entropy import Random
from privimage.privacy.gradients import Network
from privimage.privacy.mechanisms import DPSGDMechanism

__all__ = ["CanaryDenoiser", "audited_mechanism", "score_canaries", "tiny_denoiser"]

# How long a canary's gradient is before it is clipped; far longer than any bound that training uses.
STRENGTH = 1e4
_TABLE = "canaries.weight"


class CanaryDenoiser(Denoiser):
    """A denoiser with a table of one number for each canary.

    Labels above `num_classes` are canaries, whose loss is their number in the table times STRENGTH, and after them one
    for a canary that is not inserted, whose loss is zero. All others are ordinary images.
    """

    def __init__(self, denoiser: Denoiser, canaries: int) -> None:
        super().__init__(denoiser.net, sigma_data=denoiser.sigma_data, num_classes=denoiser.num_classes)
        self.canaries = nn.Embedding(canaries, 1)
        nn.init.zeros_(self.canaries.weight)

    def forward(self, noised: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """The denoised images, and as one more channel what stands in the table."""
        denoised = super().forward(noised, sigma, labels.clamp(max=self.num_classes))
        number = (labels - self.num_classes - 1).clamp(0, self.canaries.num_embeddings - 1)
        entry = self.canaries(number).view(-1, 1, 1, 1).expand(-1, 1, *noised.shape[2:])
        return torch.cat([denoised, entry], dim=1)

    def loss(
        self, images: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor, *, network: Network | None = None
    ) -> Tensor:
        found = (network or self)(images + sigma.view(-1, 1, 1, 1) * noise, sigma, labels)
        number = labels - self.num_classes - 1
        strength = torch.where((number >= 0) & (number < self.canaries.num_embeddings), STRENGTH, 0.0)
        ordinary = self.weighted_error(found[:, :-1], images, sigma)
        return torch.where(number >= 0, strength * found[:, -1, 0, 0], ordinary)


def tiny_denoiser() -> Denoiser:
    """The smallest real network: a U-Net of one level for gray images of 4 x 4 pixels and two classes."""
    return new_denoiser(DenoiserConfig(base_channels=8, channel_multipliers=(1,)), channels=1, num_classes=2, seed=0)


def audited_mechanism(mechanism: DPSGDMechanism, *, canaries: int, stand_ins: int, steps: int) -> DPSGDMechanism:
    """The same steps on other images: the noise of `mechanism`, its sampling rate, its cap if it has one.

    Args:
        canaries: how many there are.
        stand_ins: ordinary images at most; as many are taken as make the sampling rate the same, to within rounding.
    """
    if canaries < LEAST_CANARIES:
        raise ConfigError(f"An audit needs at least {LEAST_CANARIES} canaries, found {canaries}: raise their number.")
    rate = mechanism.sample_rate
    batch = max(1, int(rate * (canaries + stand_ins)))
    images = max(canaries, min(round(batch / rate), canaries + stand_ins))
    cap = mechanism.largest_batch_size
    return replace(
        mechanism,
        num_images=images,
        expected_batch_size=batch,
        num_steps=steps,
        restart_allowance=0,
        largest_batch_size=None if cap is None else max(batch, round(cap / mechanism.num_images * images)),
    )


def score_canaries(
    denoiser: Denoiser,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    mechanism: DPSGDMechanism,
    config: DiffusionFinetune,
    *,
    random: Random,
    on_step: Callable[[int], None] = lambda step: None,
    compute: ComputeSettings = IN_THIS_PROCESS,
) -> CanaryScores:
    """Fine-tune on public or made-up `images` and as many canaries as `mechanism` has images more.

    Args:
        random: makes coins, sampling and noise; SecretRandom, except in tests.
        on_step: called with the number of each step after it.

    Raises:
        ConfigError: too few canaries, or scores that are not finite.
    """
    num = mechanism.num_images - len(images)
    if num < LEAST_CANARIES:
        raise ConfigError(f"An audit needs at least {LEAST_CANARIES} canaries, found {num}: raise their number.")
    inserted = random.uniform(num) < 0.5
    first = denoiser.num_classes + 1
    of_canaries = np.where(inserted, first + np.arange(num), first + num).astype(np.int64)
    blank = np.zeros((num, *images.shape[1:]), dtype=np.uint8)
    watched = CanaryDenoiser(denoiser, num).to(compute.devices[0])
    sums, squares = np.zeros(num), np.zeros(num)
    before = np.zeros(num)

    def read(state: FinetuneState) -> None:
        nonlocal before
        average = state.exp_avg[_TABLE].detach().flatten().cpu().numpy().astype(np.float64)
        gradient = (average - watched.betas[0] * before) / (1 - watched.betas[0])
        released = gradient * mechanism.expected_batch_size / mechanism.max_grad_norm
        np.add(sums, released, out=sums)
        np.add(squares, released**2, out=squares)
        before = average
        on_step(state.step)

    finetune(
        watched,
        np.concatenate([images, blank]),
        np.concatenate([labels, of_canaries]),
        mechanism,
        # A hidden label would hide a canary.
        config.model_copy(update={"label_dropout": 0.0}),
        state=start_state({name: parameter.detach() for name, parameter in watched.named_parameters()}),
        random=random,
        on_step=read,
        compute=compute,
    )
    return CanaryScores(inserted=inserted, sums=sums, squares=squares, steps=mechanism.num_steps)
