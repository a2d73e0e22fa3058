"""What the stages ask of a generator, of whatever kind: how it samples, and how it trains in public and in private.

Sampling is the same loop for all kinds (`synthesize_images`), and so are pre-training and fine-tuning for all that learn by
gradients of images (`pretrain`, `finetune`): a kind says what is drawn for a batch, what the loss is, and what follows
from a private step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privimage.config import FinetuneConfig, PretrainConfig, SynthesizeConfig
from privimage.privacy.gradients import Network

__all__ = ["Following", "ImageGenerator", "ImageSource", "Weights"]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Following:
    """A gradient of weights that sensitive images do not reach.

    Attributes:
        gradient: by names of the whole generator.
        number: the how-manieth of its kind this is, from 1.
    """

    gradient: dict[str, Tensor]
    learning_rate: float
    number: int


class ImageSource(nn.Module, ABC):
    """A network, or several, from which labelled images are drawn."""

    num_classes: int

    @abstractmethod
    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Shape of the noise that one image of `shape` is made of."""

    @abstractmethod
    def sample(self, noise: Tensor, labels: Tensor, config: SynthesizeConfig) -> Tensor:
        """Images in about [-1, 1] from standard normal noise, each from its own alone."""


class ImageGenerator(ImageSource):
    """One that learns by gradients of images: of public ones, and by DP-SGD.

    Attributes:
        betas: Adam's decay rates.
        learner_prefix: what the names of the learner's parameters begin with.
    """

    betas = (0.9, 0.999)
    learner_prefix = ""

    @property
    def learner(self) -> nn.Module:
        """The part that DP-SGD trains; no gradient of a sensitive image is taken by any other weight."""
        return self

    def of_learner(self, weights: Weights) -> dict[str, Tensor]:
        """Those of all weights that are the learner's, by the learner's own names."""
        prefix = self.learner_prefix
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}

    @abstractmethod
    def public_rows(
        self, images: Tensor, labels: Tensor, config: PretrainConfig, random: torch.Generator
    ) -> dict[str, Tensor]:
        """What `public_losses` takes for a batch: images in [-1, 1], labels, and what is drawn for them."""

    @abstractmethod
    def public_losses(self, weights: Weights, rows: Mapping[str, Tensor]) -> Tensor:
        """Losses (batch,) whose mean all of `weights` descend, as functions of these weights."""

    @abstractmethod
    def private_rows(
        self, images: Tensor, labels: Tensor, config: FinetuneConfig, random: torch.Generator, weights: Weights
    ) -> Sequence[Tensor]:
        """Rows for `private_loss`, those of one image side by side, on the device of `random`.

        Guarantee: the rows of an image depend on it, its label, public numbers, weights, and what is drawn for its place.

        Args:
            images: uint8 (images, C, H, W); labels: int64 (images,).
            weights: of the whole generator, as they are now.
        """

    @abstractmethod
    def private_loss(self, network: Network, *rows: Tensor) -> Tensor:
        """One loss a row, (rows,), of `network`, which is the learner with some weights."""

    def made_up_rows(
        self, images: Tensor, labels: Tensor, config: FinetuneConfig, random: torch.Generator
    ) -> Sequence[Tensor]:
        """`private_rows` of made-up images, on which gradients are checked; no loss may be flat there."""
        return self.private_rows(images, labels, config, random, dict(self.named_parameters()))

    def follow(self, weights: Weights, config: FinetuneConfig, *, step: int, seed: int) -> Following | None:
        """What other weights learn from the learner's after private step number `step` (from 1).

        Post-processing: it sees released weights, public numbers, and a seed that is independent of the images.
        """
        return None
