"""The embeddings of a run, read back: generator, features of both rounds, and what was released of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.generators.interface import ImageSource
from privimage.generators.mean_embedding.critic import Critic, critic_of, features_of, new_critic, open_critic
from privimage.generators.mean_embedding.features import Features, JointFeatures, new_features
from privimage.generators.mean_embedding.matching import (
    AT_ONCE,
    EmbeddingGenerator,
    class_means,
    new_embedding_generator,
)
from privimage.generators.mean_embedding.rejection import RejectionSampling
from privimage.generators.opening import load_weights
from privimage.generators.sampling.sampler import synthesize_images
from privimage.machine.device import choose_device
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.payloads import GeneratorAbout
from privimage.privacy.mechanisms import ClassSumRounds
from privimage.store.artifacts import Artifact

__all__ = [
    "EMBEDDING",
    "OF_CRITIC",
    "Embedding",
    "draw",
    "joined",
    "means_of",
    "open_embedding",
    "open_painter",
    "open_source",
    "opened",
    "settings_of",
]

EMBEDDING = "embedding.safetensors"
"""Of `finetune` after two rounds: `means`, (classes, features of both), and the second critic, below `critic.`."""
OF_CRITIC = "critic."


def settings_of(config: RunConfig) -> MeanEmbedding:
    """The settings of the run's generator.

    Raises:
        ConfigError: the run has another kind of generator.
    """
    if not isinstance(config.generator, MeanEmbedding):
        raise ConfigError(f"A generator of kind {config.generator.kind} is not trained on mean embeddings.")
    return config.generator


def open_source(artifact: Artifact, device: torch.device) -> ImageSource:
    """The generator of `pretrain` or `finetune`; after two rounds with its critic, which rejects some of what is drawn."""
    about = GeneratorAbout.read(artifact)
    settings = MeanEmbedding.model_validate(about.network)
    size = {"channels": about.channels, "num_classes": len(about.class_names)}
    source: ImageSource = new_embedding_generator(settings, **size, resolution=about.resolution, seed=0)
    if about.rejects:
        source = RejectionSampling(source, new_critic(settings, **size), attempts=settings.critic_attempts)
    load_weights(source, artifact)
    return source.to(device).eval()


def open_painter(artifact: Artifact, device: torch.device) -> EmbeddingGenerator:
    """The same without the critic."""
    source = open_source(artifact, device)
    painter = source.source if isinstance(source, RejectionSampling) else source
    if not isinstance(painter, EmbeddingGenerator):
        raise ConfigError(f"Mean embeddings train no {type(painter).__name__}.")
    return painter


def draw(
    generator: EmbeddingGenerator, about: GeneratorAbout, seeds: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """An image of each seed, uint8, and their classes, which are `labels`, or else classes in turn."""
    device = next(generator.parameters()).device
    labels = torch.arange(len(seeds)) % generator.num_classes if labels is None else labels
    generator.eval()
    images = [
        synthesize_images(generator, of_images.to(device), part, about.shape).cpu()
        for of_images, part in zip(labels.split(AT_ONCE), seeds.split(AT_ONCE), strict=True)
    ]
    return torch.cat(images), labels


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What both rounds released, for choosing by it.

    Attributes:
        means: (classes, features).
        features: of both rounds side by side.
        critic: the second one.
    """

    means: Tensor
    features: Features
    critic: Critic


def open_embedding(config: RunConfig, pretrained: Artifact, tuned: Artifact) -> Embedding:
    """Read back what `run_finetune` wrote after two rounds."""
    generator, about, first = opened(config, {"pretrain": pretrained})
    own = MeanEmbedding.model_validate(about.network)
    tensors = load_file(tuned.local(EMBEDDING))
    means = tensors.pop("means").to(first.device)
    size = {"channels": about.channels, "num_classes": generator.num_classes}
    critic = critic_of(
        {name.removeprefix(OF_CRITIC): tensor for name, tensor in tensors.items()}, own, **size, device=first.device
    )
    seen = features_of(critic, own, first.device, number=2)
    joint = JointFeatures(parts=(first, seen), shares=(1 - own.critic_share, own.critic_share))
    return Embedding(means=means, features=joint, critic=critic)


def joined(
    first: Features, of_first: Tensor, seen: Features, of_critic: Tensor, share: float
) -> tuple[JointFeatures, Tensor]:
    """Features of both rounds side by side, and their means, (classes, numbers), likewise."""
    joint = JointFeatures(parts=(first, seen), shares=(1 - share, share))
    return joint, torch.cat([math.sqrt(1 - share) * of_first, math.sqrt(share) * of_critic], dim=1)


def means_of(sums: NDArray[np.float64], mechanism: ClassSumRounds, device: torch.device) -> Tensor:
    return class_means(sums, mechanism.num_images).to(device)


def opened(config: RunConfig, inputs: Mapping[str, Artifact]) -> tuple[EmbeddingGenerator, GeneratorAbout, Features]:
    """The generator with its first weights, the facts beside it, and the features of the first round.

    These are of pixels, and, with a selection, of what the first critic sees.
    """
    device = choose_device(config.performance.device)
    about = GeneratorAbout.read(inputs["pretrain"])
    generator = open_painter(inputs["pretrain"], device)
    own = MeanEmbedding.model_validate(about.network)
    numbers = math.prod(about.shape)
    lengthscale = float(about.own["lengthscale"])
    pixels = new_features(numbers, own.num_features, lengthscale=lengthscale, seed=own.seed, device=device)
    if not config.selection.selects:
        return generator, about, pixels
    size = {"channels": about.channels, "num_classes": generator.num_classes}
    seen = features_of(open_critic(inputs["pretrain"], own, **size, device=device), own, device, number=1)
    return generator, about, JointFeatures(parts=(pixels, seen), shares=(1 - own.critic_share, own.critic_share))
