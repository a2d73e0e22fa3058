"""The critics of a run with mean embeddings: classifiers of the sensitive classes, and what they see in an image.

The first learns from selected public images, the second also from images that were drawn after the first noisy embedding. Both
are post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from privimage.config.classifier import ClassifierConfig
from privimage.data.pixels import from_pixels
from privimage.errors import ConfigError
from privimage.generators.mean_embedding.features import (
    RandomFeatures,
    Scaling,
    median_distance,
    new_features,
    scaling_of,
)
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.semantics.classifier import ResNet, new_classifier, num_training_steps, train_classifier
from privimage.store.artifacts import Artifact
from privimage.store.weights import save_weights

__all__ = [
    "Critic",
    "critic_network",
    "critic_of",
    "examples_of",
    "features_of",
    "new_critic",
    "open_critic",
    "open_examples",
    "save_critic",
    "train_critic",
    "untrained_critic",
]

BATCH = 128
LENGTHSCALE = 0.5
"""Of the median distance of what the critic sees in the images that it learned from."""
_SCALED_ON = 2000  # images
_FEWEST = 10  # of which some are held out
_LEVELS = 3
_CRITIC = "critic.safetensors"
_EXAMPLES = "examples.safetensors"


@dataclass(frozen=True, kw_only=True)
class Critic:
    """What a classifier's blocks make of an image, each number made comparable.

    Attributes:
        network: in evaluation mode, so that no image is seen through those beside it; it takes no gradients of its own.
        lengthscale: of the kernel on what it sees.
    """

    network: ResNet
    scaling: Scaling
    lengthscale: float

    def __call__(self, images: Tensor) -> Tensor:
        """Of images in [-1, 1], NCHW: (batch, numbers)."""
        return self.scaling(self.network.activations(images))

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for `critic_of`."""
        scaling = {"scaling.mean": self.scaling.mean, "scaling.deviation": self.scaling.deviation}
        return {**self.network.state_dict(), **scaling, "lengthscale": torch.tensor(self.lengthscale)}


def critic_of(
    tensors: Mapping[str, Tensor], config: MeanEmbedding, *, channels: int, num_classes: int, device: torch.device
) -> Critic:
    """The critic whose `tensors` these are."""
    rest = dict(tensors)
    scaling = Scaling(mean=rest.pop("scaling.mean").to(device), deviation=rest.pop("scaling.deviation").to(device))
    lengthscale = float(rest.pop("lengthscale"))
    network = new_critic(config, channels=channels, num_classes=num_classes)
    network.load_state_dict(rest)
    return Critic(network=_frozen(network, device), scaling=scaling, lengthscale=lengthscale)


def features_of(critic: Critic, config: MeanEmbedding, device: torch.device, *, number: int) -> RandomFeatures:
    """The embedding of what it sees; each critic, the first and the second, has directions of its own."""
    return new_features(
        len(critic.scaling.mean),
        config.critic_features,
        lengthscale=critic.lengthscale,
        seed=config.seed + 1 + number,  # other numbers than those of pixels, and of the painter's training
        device=device,
        view=critic,
    )


def examples_of(settings: MeanEmbedding, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Some of the selected public images, uint8 NCHW, and their classes, for critics to learn from.

    Raises:
        ConfigError: there are too few. This is found before fine-tuning is charged.
    """
    config = settings
    if len(images) < _FEWEST:
        raise ConfigError(
            f"The selection has {len(images)} public images, but a critic needs at least {_FEWEST}: select more "
            "(selection.categories_per_class, selection.max_fraction), or set selection.strategy to none."
        )
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(images))[: config.critic_images])
    return torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])


def save_critic(folder: Path, critic: Critic, examples: tuple[Tensor, Tensor]) -> None:
    """Write the first critic, and what it learned from, for the second."""
    save_weights(critic.tensors(), folder / _CRITIC)
    save_weights(dict(zip(("images", "labels"), examples, strict=True)), folder / _EXAMPLES)


def open_critic(
    artifact: Artifact, config: MeanEmbedding, *, channels: int, num_classes: int, device: torch.device
) -> Critic:
    """The critic that `save_critic` wrote."""
    tensors = load_file(artifact.local(_CRITIC))
    return critic_of(tensors, config, channels=channels, num_classes=num_classes, device=device)


def open_examples(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """The examples that `save_critic` wrote: uint8 NCHW, int64."""
    tensors = load_file(artifact.local(_EXAMPLES))
    return tensors["images"], tensors["labels"]


def train_critic(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: MeanEmbedding,
    classifier: ClassifierConfig,
    *,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, int], None],
) -> tuple[Critic, float]:
    """A critic of these images (uint8 NCHW, none of them sensitive), and its accuracy on those held out of them.

    Args:
        seed: of first weights and of the order of images.
        on_step: called with the number of each step and how many there are.

    Raises:
        ConfigError: it sees no difference between the images.
    """
    chosen = _config(settings, classifier, len(images)).model_copy(update={"seed": seed})
    count = num_training_steps(len(images), chosen)
    trained = train_classifier(
        images, labels, num_classes, chosen, device=device, on_step=lambda step, loss: on_step(step, count)
    )
    network = _frozen(trained.model, device)
    few = torch.linspace(0, len(images) - 1, min(len(images), _SCALED_ON)).long()
    with torch.no_grad():
        scaling = scaling_of(network.activations(from_pixels(images[few]).to(device)))
        seen = Critic(network=network, scaling=scaling, lengthscale=1.0)
        lengthscale = LENGTHSCALE * median_distance(images.numpy(), lambda x: seen(x.to(device)).cpu())
    if not (math.isfinite(lengthscale) and lengthscale > 0):
        raise ConfigError("The critic sees no difference between images: give another selection or generator.seed.")
    return Critic(network=network, scaling=scaling, lengthscale=lengthscale), trained.validation_accuracy


def untrained_critic(
    config: MeanEmbedding, *, channels: int, resolution: int, num_classes: int, device: torch.device
) -> Critic:
    """One of the same size, to rehearse with."""
    network = _frozen(new_critic(config, channels=channels, num_classes=num_classes), device)
    seen = network.activations(torch.zeros(1, channels, resolution, resolution, device=device))[0]
    return Critic(network=network, scaling=Scaling(mean=seen, deviation=torch.ones_like(seen)), lengthscale=1.0)


def _frozen(network: ResNet, device: torch.device) -> ResNet:
    return network.to(device).eval().requires_grad_(False)


def _config(settings: MeanEmbedding, classifier: ClassifierConfig, num_images: int) -> ClassifierConfig:
    """Trained as the semantic classifier is, for about `critic_steps` steps."""
    shared = {name: getattr(classifier, name) for name in ("learning_rate", "weight_decay", "augment")}
    # Of few images all fit into one step, and some are held out.
    batch = min(BATCH, max(2, num_images // 2))
    base = critic_network(settings).model_copy(
        update={**shared, "horizontal_flip": settings.horizontal_flip, "epochs": 1, "batch_size": batch}
    )
    each = max(1, num_training_steps(num_images, base))
    return base.model_copy(update={"epochs": max(1, round(settings.critic_steps / each))})


def critic_network(settings: MeanEmbedding) -> ClassifierConfig:
    """What a critic's network is made by."""
    return ClassifierConfig(base_channels=settings.critic_channels, blocks=(1,) * _LEVELS, seed=settings.seed)


def new_critic(settings: MeanEmbedding, *, channels: int, num_classes: int) -> ResNet:
    """An untrained classifier of the sensitive classes."""
    return new_classifier(critic_network(settings), channels=channels, num_categories=num_classes)
