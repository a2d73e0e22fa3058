"""The code of the mean embedding kind (`methods.generators.mean_embedding`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.generators.interface import ImageSource
from privimage.generators.mean_embedding.choice import chosen_images
from privimage.generators.mean_embedding.embedding import open_source
from privimage.generators.mean_embedding.finetuning import rehearse_finetune, run_finetune
from privimage.generators.mean_embedding.matching import EmbeddingGenerator, new_embedding_generator
from privimage.generators.mean_embedding.pretraining import run_pretrain
from privimage.methods.generator import GeneratorKind
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.store.artifacts import Artifact

__all__ = [
    "chosen_images",
    "losses_of_images",
    "new_generator",
    "open_generator",
    "rehearse_finetune",
    "run_finetune",
    "run_pretrain",
]


def new_generator(
    network: Mapping[str, Any], *, channels: int, resolution: int, num_classes: int, seed: int
) -> EmbeddingGenerator:
    settings = MeanEmbedding.model_validate(network)
    return new_embedding_generator(
        settings, channels=channels, resolution=resolution, num_classes=num_classes, seed=seed
    )


def open_generator(artifact: Artifact, settings: GeneratorKind | None, device: torch.device) -> ImageSource:
    return open_source(artifact, device)


def losses_of_images(
    generator: ImageSource,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    settings: GeneratorKind,
    *,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float64]:
    """None of its networks was trained on a sensitive image."""
    raise DataError("a generator that is trained on mean embeddings has no loss of a given image")
