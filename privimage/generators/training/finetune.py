"""Private fine-tuning of a generator: the loop around DP-SGD's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.errors import ConfigError
from privimage.generators.interface import ImageGenerator
from privimage.generators.training.compute import IN_THIS_PROCESS, ComputeSettings
from privimage.generators.training.ema import ema_copy, ema_update
from privimage.generators.training.private_sum import PrivateSum
from privimage.generators.training.workers import workers_of
from privimage.methods.training import FinetuneConfig
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.entropy import Random
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.privacy.poisson import poisson_batch

__all__ = ["FinetuneState", "finetune", "start_state"]

# Clipped gradients are tiny (max_grad_norm / batch): the usual 1e-8 would act as a second learning rate.
ADAM_EPS = 1e-12


@dataclass(kw_only=True)
class FinetuneState:
    """Where fine-tuning stands. All of it is post-processing of noisy gradients; no generator state is in it."""

    step: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]


def start_state(weights: dict[str, Tensor]) -> FinetuneState:
    """Begin from pre-trained weights (their moving average)."""
    return FinetuneState(
        step=0,
        weights=ema_copy(weights),
        ema=ema_copy(weights),
        exp_avg={name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        exp_avg_sq={name: torch.zeros_like(tensor) for name, tensor in weights.items()},
    )


def finetune(
    generator: ImageGenerator[Any, Any],
    private_images: NDArray[np.uint8],
    private_labels: NDArray[np.int64],
    mechanism: DPSGDMechanism,
    config: FinetuneConfig,
    *,
    state: FinetuneState,
    random: Random,
    on_step: Callable[[FinetuneState], None],
    compute: ComputeSettings = IN_THIS_PROCESS,
) -> FinetuneState:
    """Run the remaining steps of `mechanism` from `state`; the result's `ema` are the weights to use.

    Guarantee: the sequence of states after `state` is the composition of `mechanism.num_steps - state.step` steps
    as accounted by `mechanism.event`, given fresh draws from `random`. The images are read in no other way.

    Args:
        private_images: uint8 NCHW; private_labels: int64 in 0..num_classes-1.
        random: makes the Poisson coins and the noise, in this process; SecretRandom, except in tests.
        on_step: called after each step; must not be given anything private, and is not.

    Raises:
        ConfigError: a layer mixes images, or the number of images is not the mechanism's.
        PrivimageError: a process of one of several devices died; the step it was in released nothing.
    """
    if len(private_images) != mechanism.num_images:
        raise ConfigError("The number of images is not the one that the mechanism accounts for.")
    work = PrivateSum(generator=generator, config=config, max_grad_norm=mechanism.max_grad_norm, compute=compute)
    work.check(*private_images.shape[1:3])
    state = _on_device(state, compute.devices[0], [name for name, _ in generator.named_parameters()])
    learned = {name: tensor for name, tensor in state.weights.items() if name.startswith(generator.learner_prefix)}
    sizes = [tensor.numel() for tensor in learned.values()]
    with workers_of(work, compute.devices) as workers:
        while state.step < mechanism.num_steps:
            rows = poisson_batch(mechanism.num_images, mechanism.sample_rate, random, mechanism.largest_batch_size)
            seed = random.seed()
            job = {
                "images": torch.from_numpy(private_images[rows]),
                "labels": torch.from_numpy(private_labels[rows]),
                "seed": torch.tensor([seed]),
            }
            total = workers.sum(torch.cat([tensor.flatten() for tensor in state.weights.values()]), job)
            clipped = ClippedSum(value=total, max_grad_norm=work.max_grad_norm)
            flat = noisy_mean_gradient(clipped, mechanism, random)
            parts = zip(learned.items(), flat.split(sizes), strict=True)
            gradient = {name: part.view_as(tensor) for (name, tensor), part in parts}
            _adam_step(state, gradient, config.learning_rate, generator.betas)
            following = generator.follow(state.weights, config, step=state.step, seed=seed)
            if following is not None:
                _adam(state, following.gradient, following.learning_rate, generator.betas, following.number)
            ema_update(state.ema, state.weights, decay=config.ema_decay, step=state.step)
            on_step(state)
    return state


def _on_device(state: FinetuneState, device: torch.device, names: Sequence[str]) -> FinetuneState:
    """A copy there; what the caller saved is left as it was.

    In the order of `names`, in which weights are sent to where sums are made: a checkpoint has lost it.
    """

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[name].to(device, copy=True) for name in names}

    return FinetuneState(
        step=state.step,
        weights=moved(state.weights),
        ema=moved(state.ema),
        exp_avg=moved(state.exp_avg),
        exp_avg_sq=moved(state.exp_avg_sq),
    )


def _adam_step(
    state: FinetuneState, gradient: dict[str, Tensor], learning_rate: float, betas: tuple[float, float]
) -> None:
    """Adam on the noisy gradient; raises state.step by one."""
    state.step += 1
    _adam(state, gradient, learning_rate, betas, state.step)


@torch.no_grad()
def _adam(
    state: FinetuneState, gradient: dict[str, Tensor], learning_rate: float, betas: tuple[float, float], number: int
) -> None:
    """Update number `number`, from 1, of the weights that have a gradient (Kingma and Ba 2015, Algorithm 1)."""
    beta1, beta2 = betas
    correction1, correction2 = 1 - beta1**number, 1 - beta2**number
    for name, g in gradient.items():
        state.exp_avg[name].lerp_(g, 1 - beta1)
        state.exp_avg_sq[name].lerp_(g * g, 1 - beta2)
        denominator = (state.exp_avg_sq[name] / correction2).sqrt() + ADAM_EPS
        state.weights[name].sub_(learning_rate / correction1 * state.exp_avg[name] / denominator)
