"""Training of a generator on public images: seeded, resumable, no privacy cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.errors import TrainingError
from privimage.generators.interface import ImageGenerator
from privimage.generators.training.compute import IN_THIS_PROCESS, ComputeSettings
from privimage.generators.training.ema import ema_copy, ema_update
from privimage.generators.training.workers import Job, workers_of
from privimage.methods.training import PretrainConfig
from privimage.privacy.gradients import autocast

__all__ = [
    "DrawsRows",
    "PretrainState",
    "PublicSum",
    "Training",
    "by_probability",
    "evenly",
    "learning_rate_at",
    "pretrain",
    "random_of_step",
    "train",
]


class Training(Protocol):
    """What the loop has to know of its settings."""

    @property
    def num_steps(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def ema_decay(self) -> float: ...


DrawsRows = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws so many rows of the public images, and the class that each stands for in this step."""


def evenly(labels: Tensor) -> DrawsRows:
    """All images equally often, each with its own label."""

    def draw(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (count,), generator=random)
        return rows, labels[rows]

    return draw


def by_probability(probabilities: Tensor, sharpness: float = 1.0) -> DrawsRows:
    """All classes equally often, and of each the images as their `probabilities`, (images, classes), of this class are.

    So an image that may be of two classes stands for either at times. With a `sharpness` above 1, what is sure of its class does so
    more often: probabilities are raised to this power.
    """
    sums = (probabilities.double() ** sharpness).cumsum(0).T.contiguous()

    def draw(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(sums), (count,), generator=random)
        points = torch.rand(count, generator=random, dtype=torch.float64)
        rows = torch.empty(count, dtype=torch.long)
        for label in labels.unique():
            own = labels == label
            rows[own] = torch.searchsorted(sums[label], points[own] * sums[label, -1], right=True)
        return rows.clamp(max=len(probabilities) - 1), labels

    return draw


@dataclass(kw_only=True)
class PretrainState:
    """Where training stands: everything that the remaining steps depend on."""

    step: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    curve: list[tuple[int, float]]


def learning_rate_at(step: int, config: Training) -> float:
    """Linear warm-up over at most 100 steps, then cosine to a tenth."""
    warmup = min(100, max(1, config.num_steps // 10))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.num_steps - warmup)
    return config.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(kw_only=True)
class PublicSum:
    """The gradient of a batch's mean loss, and that loss as last entry: work that devices share (`workers.Work`)."""

    generator: ImageGenerator[Any, Any]
    compute: ComputeSettings

    def to(self, device: torch.device) -> None:
        self.generator.to(device)

    def share(self, weights: Tensor, job: Job, part: int, parts: int) -> Tensor:
        """The job has the rows of `ImageGenerator.public_losses` for the whole batch."""
        named = dict(self.generator.named_parameters())
        pieces = zip(named.items(), weights.split([parameter.numel() for parameter in named.values()]), strict=True)
        own = {name: piece.view_as(parameter).requires_grad_() for (name, parameter), piece in pieces}
        mine = {name: tensor.tensor_split(parts)[part].to(weights.device) for name, tensor in job.items()}
        with autocast(weights.device, self.compute.precision):
            loss = self.generator.public_losses(own, mine).sum() / len(job["images"])
        gradients = torch.autograd.grad(loss, list(own.values()))
        return torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach()[None]])


def pretrain(
    generator: ImageGenerator[Any, Any],
    public_images: Tensor,
    rows: DrawsRows,
    config: PretrainConfig,
    *,
    state: PretrainState | None,
    on_step: Callable[[PretrainState, float], None],
    compute: ComputeSettings = IN_THIS_PROCESS,
) -> PretrainState:
    """Train `generator` (changed in place) on uint8 NCHW `public_images`; the result's `ema` are the weights to use.

    Each step draws its batch, noise levels and noise from a generator seeded by (seed, step): resuming from `state`
    continues exactly as if nothing had happened. `on_step(state, loss)` is called after every step. `public_images`
    may be mapped from a file: a batch at a time is read.

    Raises:
        TrainingError: a loss, or a weight after the last step, is not finite.
        PrivimageError: a process of one of several devices died.
    """
    return train(
        generator,
        lambda step: _draw_batch(public_images, rows, generator, config, step),
        config,
        section="generator.pretrain",
        state=state,
        on_step=on_step,
        compute=compute,
    )


def train(
    generator: ImageGenerator[Any, Any],
    draw: Callable[[int], dict[str, Tensor]],
    config: Training,
    *,
    section: str,
    state: PretrainState | None,
    on_step: Callable[[PretrainState, float], None],
    compute: ComputeSettings = IN_THIS_PROCESS,
) -> PretrainState:
    """The loop of `pretrain` on batches of any kind: `draw(step)` gives the rows of a step, as `public_losses` takes them.

    Raises as `pretrain`, naming `section` of the configuration.
    """
    with workers_of(PublicSum(generator=generator, compute=compute), compute.devices) as workers:
        parameters = dict(generator.named_parameters())
        sizes = [parameter.numel() for parameter in parameters.values()]
        optimizer = torch.optim.Adam(parameters.values(), lr=config.learning_rate, betas=generator.betas)
        state = _start(parameters, optimizer, state)
        batch = draw(state.step)
        while state.step < config.num_steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(state.step, config)
            found = workers.sum(torch.cat([tensor.flatten() for tensor in state.weights.values()]), batch)
            # Drawn here, while a GPU still computes: it is waited for when the loss is asked for.
            batch = draw(state.step + 1)
            value = float(found[-1])
            if not math.isfinite(value):
                raise TrainingError(
                    f"Training ({section}) diverged at step {state.step}: the loss is {value}; lower {section}.learning_rate."
                )
            for parameter, gradient in zip(parameters.values(), found[:-1].split(sizes), strict=True):
                parameter.grad = gradient.view_as(parameter)
            optimizer.step()
            state.step += 1
            ema_update(state.ema, parameters, decay=config.ema_decay, step=state.step)
            on_step(state, value)
    if not all(bool(tensor.isfinite().all()) for tensor in state.ema.values()):
        raise TrainingError(
            f"Training ({section}) diverged at step {state.step - 1}: a weight is not finite; lower {section}.learning_rate."
        )
    return state


def random_of_step(seed: int, step: int) -> torch.Generator:
    """A step's own random numbers."""
    # Mixed into 32 bits, because torch's CPU generator ignores the others of a seed.
    mixed = np.random.SeedSequence([seed, step]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def _draw_batch(
    public_images: Tensor, drawn: DrawsRows, generator: ImageGenerator[Any, Any], config: PretrainConfig, step: int
) -> dict[str, Tensor]:
    """The rows of one step, from that step's own random numbers."""
    random = random_of_step(config.seed, step)
    rows, labels = drawn(config.batch_size, random)
    images = from_pixels(public_images[rows])
    if config.horizontal_flip:
        mirrored = torch.rand(len(rows), generator=random) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return generator.public_rows(images, labels, config, random)


def _start(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Adam, state: PretrainState | None
) -> PretrainState:
    """A state whose tensors are the live ones of model and optimizer, so that saving it saves the training."""
    if state is not None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state.weights[name])
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step if state else 0)),
            "exp_avg": state.exp_avg[name].to(parameter.device) if state else torch.zeros_like(parameter),
            "exp_avg_sq": state.exp_avg_sq[name].to(parameter.device) if state else torch.zeros_like(parameter),
        }
    return PretrainState(
        step=state.step if state else 0,
        weights={name: parameter.data for name, parameter in parameters.items()},
        ema={name: tensor.to(parameters[name].device) for name, tensor in state.ema.items()}
        if state
        else ema_copy(parameters),
        exp_avg={name: optimizer.state[parameter]["exp_avg"] for name, parameter in parameters.items()},
        exp_avg_sq={name: optimizer.state[parameter]["exp_avg_sq"] for name, parameter in parameters.items()},
        curve=list(state.curve) if state else [],
    )
