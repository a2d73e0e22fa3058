"""Private fine-tuning of the denoiser: the loop around DP-SGD's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.validators import ModuleValidator
from torch import Tensor
from torch.func import functional_call

from privimage.config import FinetuneConfig
from privimage.errors import ConfigError
from privimage.generators.denoiser import Denoiser, from_pixels
from privimage.generators.ema import ema_copy, ema_update
from privimage.privacy.clipping import clipped_gradient_sum
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.entropy import Random
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.privacy.poisson import poisson_batch

__all__ = ["FinetuneState", "check_layers", "finetune", "start_state"]

ADAM_BETAS = (0.9, 0.999)
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


def check_layers(denoiser: Denoiser) -> None:
    """Raise ConfigError if a layer mixes images, as batch norm does; to be asked before anything is charged."""
    problems = ModuleValidator.validate(denoiser.train(), strict=False)
    if problems:
        raise ConfigError(f"The denoiser has a layer that DP-SGD cannot use: {problems[0]}")


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
    denoiser: Denoiser,
    private_images: NDArray[np.uint8],
    private_labels: NDArray[np.int64],
    mechanism: DPSGDMechanism,
    config: FinetuneConfig,
    *,
    state: FinetuneState,
    random: Random,
    rows_at_once: int,
    on_step: Callable[[FinetuneState], None],
) -> FinetuneState:
    """Run the remaining steps of `mechanism` from `state`; the result's `ema` are the weights to use.

    Guarantee: the sequence of states after `state` is the composition of `mechanism.num_steps - state.step` steps
    as accounted by `mechanism.event`, given fresh draws from `random`. The images are read in no other way.

    Args:
        private_images: uint8 NCHW; private_labels: int64 in 0..num_classes-1.
        random: makes the Poisson coins and the noise; SecretRandom, except in tests.
        rows_at_once: images x noise draws held in memory; does not change the result beyond rounding.
        on_step: called after each step; must not be given anything private, and is not.

    Raises:
        ConfigError: a layer of the denoiser mixes images, or the number of images is not the mechanism's.
    """
    if len(private_images) != mechanism.num_images:
        raise ConfigError("The number of images is not the one that the mechanism accounts for.")
    check_layers(denoiser)
    device = next(denoiser.parameters()).device
    parameters = {name: tensor.to(device) for name, tensor in state.weights.items()}
    names = list(parameters)
    sizes = [parameters[name].numel() for name in names]
    state = FinetuneState(
        step=state.step,
        weights=parameters,
        ema={name: tensor.to(device) for name, tensor in state.ema.items()},
        exp_avg={name: tensor.to(device) for name, tensor in state.exp_avg.items()},
        exp_avg_sq={name: tensor.to(device) for name, tensor in state.exp_avg_sq.items()},
    )
    loss = _loss_of_one_image(denoiser)
    images_at_once = max(1, rows_at_once // config.noise_samples)
    while state.step < mechanism.num_steps:
        rows = poisson_batch(mechanism.num_images, mechanism.sample_rate, random, mechanism.largest_batch_size)
        inputs = _draws(private_images[rows], private_labels[rows], denoiser.num_classes, config, random.seed())
        clipped = clipped_gradient_sum(
            loss,
            state.weights,
            [tensor.to(device) for tensor in inputs],
            max_grad_norm=mechanism.max_grad_norm,
            images_at_once=images_at_once,
        )
        flat = noisy_mean_gradient(clipped, mechanism, random)
        gradient = {
            name: part.view_as(state.weights[name]) for name, part in zip(names, flat.split(sizes), strict=True)
        }
        _adam_step(state, gradient, config.learning_rate)
        ema_update(state.ema, state.weights, decay=config.ema_decay, step=state.step)
        on_step(state)
    return state


def _loss_of_one_image(denoiser: Denoiser) -> Callable[..., Tensor]:
    """Mean over the noise draws of one image: averaged before clipping, so one image counts once."""

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        draws = len(sigma)
        batch = image.expand(draws, *image.shape)
        noised = batch + sigma.view(-1, 1, 1, 1) * noise
        denoised = functional_call(denoiser, parameters, (noised, sigma, label.expand(draws)))
        return denoiser.weighted_error(denoised, batch, sigma).mean()

    return loss


def _draws(
    images: NDArray[np.uint8], labels: NDArray[np.int64], no_label: int, config: FinetuneConfig, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, labels (hidden once per image), sigmas and noise of one batch: (B,C,H,W), (B,), (B,K), (B,K,C,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    x = from_pixels(torch.from_numpy(images))
    count, draws = len(x), config.noise_samples
    hidden = torch.rand(count, generator=generator) < config.label_dropout
    shown = torch.where(hidden, no_label, torch.from_numpy(labels))
    sigma = torch.exp(config.sigma_mean + config.sigma_std * torch.randn(count, draws, generator=generator))
    noise = torch.randn((count, draws, *x.shape[1:]), generator=generator)
    return x, shown, sigma, noise


@torch.no_grad()
def _adam_step(state: FinetuneState, gradient: dict[str, Tensor], learning_rate: float) -> None:
    """Adam (Kingma and Ba 2015, Algorithm 1) on the noisy gradient; raises state.step by one."""
    state.step += 1
    beta1, beta2 = ADAM_BETAS
    correction1, correction2 = 1 - beta1**state.step, 1 - beta2**state.step
    for name, g in gradient.items():
        state.exp_avg[name].lerp_(g, 1 - beta1)
        state.exp_avg_sq[name].lerp_(g * g, 1 - beta2)
        denominator = (state.exp_avg_sq[name] / correction2).sqrt() + ADAM_EPS
        state.weights[name].sub_(learning_rate / correction1 * state.exp_avg[name] / denominator)
