"""The critic of a run with mean embeddings: what it learns of the selected public images, and how it is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from privimage.config import ClassifierConfig, MerfConfig, RunConfig
from privimage.errors import ConfigError
from privimage.generators.features import Scaling, median_distance, scaling_of
from privimage.generators.pixels import from_pixels
from privimage.pipeline import StageContext
from privimage.semantics.classifier import ResNet, new_classifier, num_training_steps, train_classifier
from privimage.stages.models import save_weights
from privimage.store.artifacts import Artifact

__all__ = ["Critic", "open_critic", "train_critic"]

BATCH = 128
LENGTHSCALE = 0.5
"""Of the median distance of what the critic sees in selected images."""
_SCALED_ON = 2000  # images
_LEVELS = 3
_FILE = "critic.safetensors"


@dataclass(frozen=True, kw_only=True)
class Critic:
    """A classifier of public images by sensitive classes; what its blocks make of images, made comparable, is what it sees."""

    network: ResNet
    scaling: Scaling

    @property
    def numbers(self) -> int:
        return len(self.scaling.mean)

    def __call__(self, images: Tensor) -> Tensor:
        """Of images in [-1, 1], NCHW: (batch, numbers)."""
        return self.scaling(self.network.activations(images))


def train_critic(
    context: StageContext, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, device: torch.device
) -> tuple[float, float]:
    """Write the critic of these selected public images; its lengthscale, and its accuracy on those held out of them."""
    config = _config(context.config, len(images))
    with context.progress.ticker("critic", num_training_steps(len(images), config)) as tick:
        trained = train_classifier(
            torch.from_numpy(images), torch.from_numpy(labels), num_classes, config, device=device, on_step=tick
        )
    network = trained.model.to(device).eval()
    few = np.linspace(0, len(images) - 1, min(len(images), _SCALED_ON)).astype(np.int64)
    with torch.no_grad():
        scaling = scaling_of(network.activations(from_pixels(torch.from_numpy(images[few]).to(device))))
        critic = Critic(network=network, scaling=scaling)
        lengthscale = LENGTHSCALE * median_distance(images, lambda x: critic(x.to(device)).cpu())
    if not (math.isfinite(lengthscale) and lengthscale > 0):
        raise ConfigError("The critic sees no difference between selected images: give another selection or merf.seed.")
    kept = {"scaling.mean": scaling.mean, "scaling.deviation": scaling.deviation}
    save_weights({**network.state_dict(), **kept}, context.folder / _FILE)
    return lengthscale, trained.validation_accuracy


def open_critic(
    artifact: Artifact, config: MerfConfig, channels: int, num_classes: int, device: torch.device
) -> Critic:
    """The critic that `train_critic` wrote; its weights take no gradients."""
    tensors = load_file(artifact.local(_FILE))
    scaling = Scaling(
        mean=tensors.pop("scaling.mean").to(device), deviation=tensors.pop("scaling.deviation").to(device)
    )
    network = new_classifier(_network(config), channels=channels, num_categories=num_classes)
    network.load_state_dict(tensors)
    return Critic(network=network.to(device).eval().requires_grad_(False), scaling=scaling)


def _network(config: MerfConfig) -> ClassifierConfig:
    return ClassifierConfig(
        base_channels=config.critic_channels, blocks=(1,) * _LEVELS, batch_size=BATCH, seed=config.seed
    )


def _config(config: RunConfig, num_images: int) -> ClassifierConfig:
    """Trained as the semantic classifier is, for about `critic_steps` steps."""
    shared = {name: getattr(config.classifier, name) for name in ("learning_rate", "weight_decay", "augment")}
    # Of few images all fit into one step, and some are held out.
    batch = min(BATCH, max(2, num_images // 2))
    base = _network(config.merf).model_copy(
        update={**shared, "horizontal_flip": config.pretrain.horizontal_flip, "epochs": 1, "batch_size": batch}
    )
    each = max(1, num_training_steps(num_images, base))
    return base.model_copy(update={"epochs": max(1, round(config.merf.critic_steps / each))})
