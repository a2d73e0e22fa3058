"""Networks to files and back: safetensors for weights, with the settings that rebuild the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from privimage.config import ClassifierConfig, DenoiserConfig, GanConfig, MerfConfig
from privimage.generators.denoiser import new_denoiser
from privimage.generators.gan import new_gan
from privimage.generators.interface import ImageSource
from privimage.generators.judged import Judged
from privimage.generators.merf import new_merf
from privimage.semantics.classifier import ResNet, new_classifier
from privimage.store.artifacts import Artifact

__all__ = ["critic_network", "new_critic", "new_generator", "open_classifier", "open_generator", "save_weights"]

_CRITIC_LEVELS = 3

_SECTIONS: Mapping[str, type[DenoiserConfig | GanConfig | MerfConfig]] = {
    "diffusion": DenoiserConfig,
    "gan": GanConfig,
    "merf": MerfConfig,
}


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors."""
    # Written by Python, because safetensors' own writer tells of a full disk by an error of its own.
    path.write_bytes(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}))


def open_classifier(artifact: Artifact, device: torch.device) -> tuple[ResNet, Sequence[str]]:
    """The classifier of stage `classifier`, in evaluation mode, and its category names."""
    facts: dict[str, Any] = artifact.read_json("classifier.json")
    names: Sequence[str] = facts["class_names"]
    config = ClassifierConfig.model_validate(facts["config"])
    model = new_classifier(config, channels=facts["channels"], num_categories=len(names))
    model.load_state_dict(load_file(artifact.local("classifier.safetensors")))
    return model.to(device).eval(), names


def new_generator(
    config: DenoiserConfig | GanConfig | MerfConfig, *, channels: int, resolution: int, num_classes: int, seed: int
) -> ImageSource:
    """A generator of the kind that the section is of, with weights initialised from `seed`."""
    if isinstance(config, GanConfig):
        return new_gan(config, channels=channels, resolution=resolution, num_classes=num_classes, seed=seed)
    if isinstance(config, MerfConfig):
        return new_merf(config, channels=channels, resolution=resolution, num_classes=num_classes, seed=seed)
    return new_denoiser(config, channels=channels, num_classes=num_classes, seed=seed)


def critic_network(config: MerfConfig) -> ClassifierConfig:
    """What a critic's network is made by."""
    return ClassifierConfig(base_channels=config.critic_channels, blocks=(1,) * _CRITIC_LEVELS, seed=config.seed)


def new_critic(config: MerfConfig, *, channels: int, num_classes: int) -> ResNet:
    """An untrained classifier of the sensitive classes."""
    return new_classifier(critic_network(config), channels=channels, num_categories=num_classes)


def open_generator(artifact: Artifact, device: torch.device) -> tuple[ImageSource, dict[str, Any]]:
    """The generator of `pretrain` or `finetune`, with its averaged weights, and the facts written beside it.

    Of every kind these lie in denoiser.safetensors and denoiser.json: paid artifacts keep the names that they have. Those of a
    generator that is `judged` hold its judge, too.
    """
    facts: dict[str, Any] = artifact.read_json("denoiser.json")
    config = _SECTIONS[facts.get("kind", "diffusion")].model_validate(facts["config"])
    size = {"channels": facts["channels"], "num_classes": len(facts["class_names"])}
    generator = new_generator(config, **size, resolution=facts["resolution"], seed=0)
    if facts.get("judged", False) and isinstance(config, MerfConfig):
        generator = Judged(generator, new_critic(config, **size), attempts=config.critic_attempts)
    generator.load_state_dict(load_file(artifact.local("denoiser.safetensors")))
    return generator.to(device).eval(), facts
