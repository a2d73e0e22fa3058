"""The code of the diffusion kind (`methods.generators.diffusion`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.diffusion.labels import with_other_classes
from privimage.generators.diffusion.losses import denoising_losses
from privimage.generators.interface import ImageSource
from privimage.generators.opening import load_weights
from privimage.generators.training import gradients
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.gradients import rehearse_finetune, run_finetune
from privimage.methods.generator import GeneratorKind
from privimage.methods.generators.diffusion import DenoiserConfig, Diffusion
from privimage.payloads import GeneratorAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.artifacts import Artifact

__all__ = [
    "denoiser_for_finetuning",
    "losses_of_images",
    "new_generator",
    "open_generator",
    "rehearse_finetune",
    "run_finetune",
    "run_pretrain",
    "settings_of",
]


def settings_of(settings: GeneratorKind | None) -> Diffusion:
    """The settings as this kind's; the defaults for None."""
    if settings is None:
        return Diffusion()
    if not isinstance(settings, Diffusion):
        raise ConfigError(f"The generator is one by diffusion, but the settings are of kind {settings.kind}.")
    return settings


def new_generator(
    network: Mapping[str, Any], *, channels: int, resolution: int, num_classes: int, seed: int
) -> Denoiser:
    config = DenoiserConfig.model_validate(network)
    return new_denoiser(config, channels=channels, num_classes=num_classes, seed=seed)


def open_generator(artifact: Artifact, settings: GeneratorKind | None, device: torch.device) -> Denoiser:
    about = GeneratorAbout.read(artifact)
    config = DenoiserConfig.model_validate(about.network)
    classes = len(about.class_names)
    sampling = settings_of(settings).sampling
    denoiser = new_denoiser(config, channels=about.channels, num_classes=classes, seed=0, sampling=sampling)
    load_weights(denoiser, artifact)
    return denoiser.to(device).eval()


def denoiser_for_finetuning(config: RunConfig, inputs: Mapping[str, Artifact]) -> tuple[Denoiser, ComputeSettings]:
    """The denoiser that fine-tuning starts from, and how it would be computed."""
    denoiser, _, compute = gradients.open_for_finetuning(config, inputs)
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"A {type(denoiser).__name__} is no denoiser.")
    return denoiser, compute


def run_pretrain(context: StageContext) -> Outcome:
    return gradients.run_pretrain(context, with_other_classes)


def losses_of_images(
    generator: ImageSource,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    settings: GeneratorKind,
    *,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float64]:
    if not isinstance(generator, Denoiser):
        raise TypeError(f"A {type(generator).__name__} is no denoiser.")
    config = settings_of(settings).finetune
    return denoising_losses(generator, images, labels, config, device=device, batch_size=batch_size)
