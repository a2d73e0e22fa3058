"""Networks to files and back: safetensors for weights, with the settings that rebuild the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from privimage.config import ClassifierConfig, DenoiserConfig
from privimage.generators.denoiser import Denoiser, new_denoiser
from privimage.semantics.classifier import ResNet, new_classifier
from privimage.store.artifacts import Artifact

__all__ = ["open_classifier", "open_denoiser", "save_weights"]


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


def open_denoiser(artifact: Artifact, device: torch.device) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of `pretrain` or `finetune`, with its averaged weights, and the facts written beside it."""
    facts: dict[str, Any] = artifact.read_json("denoiser.json")
    denoiser = new_denoiser(
        DenoiserConfig.model_validate(facts["config"]),
        channels=facts["channels"],
        num_classes=len(facts["class_names"]),
        seed=0,
    )
    denoiser.load_state_dict(load_file(artifact.local("denoiser.safetensors")))
    return denoiser.to(device).eval(), facts
