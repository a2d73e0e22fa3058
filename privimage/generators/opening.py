"""Generators from their artifacts: the kind that is written there opens itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from privimage.generators.interface import ImageSource, code_of
from privimage.methods.generator import GeneratorKind
from privimage.methods.registry import GENERATORS
from privimage.payloads import GeneratorAbout
from privimage.store.artifacts import Artifact
from privimage.store.weights import save_weights

__all__ = ["load_weights", "open_generator", "save_generator"]


def open_generator(
    artifact: Artifact, device: torch.device, settings: GeneratorKind | None = None
) -> tuple[ImageSource, GeneratorAbout]:
    """The generator of `pretrain`, `warmup` or `finetune`, with its averaged weights, and what is written beside it.

    Args:
        settings: of a run, by which it samples; None = by default.
    """
    about = GeneratorAbout.read(artifact)
    kind = GENERATORS.named(about.kind)
    return code_of(kind).open_generator(artifact, settings, device), about


def load_weights(network: nn.Module, artifact: Artifact) -> None:
    """Give a network the weights of an artifact."""
    network.load_state_dict(load_file(artifact.local(GeneratorAbout.WEIGHTS)))


def save_generator(folder: Path, about: GeneratorAbout, weights: Mapping[str, Tensor]) -> None:
    """Write a generator: its averaged weights, and what rebuilds it."""
    save_weights(weights, folder / GeneratorAbout.WEIGHTS)
    about.write(folder)
