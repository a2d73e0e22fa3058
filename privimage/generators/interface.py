"""What the stages ask of a generator, of whatever kind: how it samples, and how it trains in public and in private.

Sampling is the same loop for all kinds (`synthesize_images`), and so are pre-training and fine-tuning for all that learn by
gradients of images (`pretrain`, `finetune`): a kind says what is drawn for a batch, what the loss is, and what follows
from a private step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privimage.config.run import RunConfig
from privimage.methods.generator import GeneratorKind
from privimage.methods.training import FinetuneConfig, PretrainConfig
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.gradients import Network
from privimage.store.artifacts import Artifact

__all__ = [
    "ChoosesImages",
    "Chosen",
    "Following",
    "GeneratorCode",
    "ImageGenerator",
    "ImageSource",
    "Weights",
    "chooser_of",
    "code_of",
]

Weights = Mapping[str, Tensor]
P = TypeVar("P", bound=PretrainConfig)
F = TypeVar("F", bound=FinetuneConfig)


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
    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images in about [-1, 1] from standard normal noise, each from its own alone."""


class ImageGenerator(ImageSource, Generic[P, F]):
    """One that learns by gradients of images: of public ones, and by DP-SGD, each by the settings of its kind.

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
    def public_rows(self, images: Tensor, labels: Tensor, config: P, random: torch.Generator) -> dict[str, Tensor]:
        """What `public_losses` takes for a batch: images in [-1, 1], labels, and what is drawn for them."""

    @abstractmethod
    def public_losses(self, weights: Weights, rows: Mapping[str, Tensor]) -> Tensor:
        """Losses (batch,) whose mean all of `weights` descend, as functions of these weights."""

    @abstractmethod
    def private_rows(
        self, images: Tensor, labels: Tensor, config: F, random: torch.Generator, weights: Weights
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

    def made_up_rows(self, images: Tensor, labels: Tensor, config: F, random: torch.Generator) -> Sequence[Tensor]:
        """`private_rows` of made-up images, on which gradients are checked; no loss may be flat there."""
        return self.private_rows(images, labels, config, random, dict(self.named_parameters()))

    def first_following(self, config: F) -> int:
        """The first private step that other weights learn from, if there are any."""
        return 1

    def follow(self, weights: Weights, config: F, *, step: int, seed: int) -> Following | None:
        """What other weights learn from the learner's after private step number `step` (from 1).

        Post-processing: it sees released weights, public numbers, and a seed that is independent of the images.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Some of the images of stage `synthesize`, where images are chosen together.

    Attributes:
        images: uint8 NCHW; labels: their classes.
        is_other: which of them are not drawn, but come from public images, bool.
        drawn_rejected: whether drawn ones were rejected where a critic saw another class; the same for all parts.
    """

    images: Tensor
    labels: Tensor
    is_other: Tensor
    drawn_rejected: bool


class GeneratorCode(Protocol):
    """The module that a declaration names as `code`: what stages call, once there is something to compute."""

    def new_generator(
        self, network: Mapping[str, Any], *, channels: int, resolution: int, num_classes: int, seed: int
    ) -> ImageSource:
        """A generator with the network of these settings, and weights initialised from `seed`."""
        ...

    def open_generator(self, artifact: Artifact, settings: GeneratorKind | None, device: torch.device) -> ImageSource:
        """The generator of stage pretrain, warmup or finetune, in evaluation mode, with its averaged weights.

        Args:
            settings: of a run, by which it samples; None = by default.
        """
        ...

    def run_pretrain(self, context: StageContext) -> Outcome:
        """Write what `GeneratorAbout` describes, trained on the selection, if there is one."""
        ...

    def rehearse_finetune(self, config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
        """Find before the charge, and without sensitive images, what could otherwise fail after it."""
        ...

    def run_finetune(self, context: StageContext) -> Outcome:
        """Run the mechanism that was paid for, and write what `GeneratorAbout` describes."""
        ...

    def losses_of_images(
        self,
        generator: ImageSource,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        settings: GeneratorKind,
        *,
        device: torch.device,
        batch_size: int,
    ) -> NDArray[np.float64]:
        """How well the generator knows each image: what a membership attack looks at.

        Raises:
            DataError: such a generator has no loss of a given image.
        """
        ...


class ChoosesImages(Protocol):
    """What such a module has, too, if its declaration says that public images are among the synthetic ones."""

    def chosen_images(self, context: StageContext, shares: Sequence[float] | None) -> Iterator[Chosen]:
        """All images of stage synthesize, with `shares` of the classes, or else equal ones."""
        ...


def code_of(settings: GeneratorKind | type[GeneratorKind]) -> GeneratorCode:
    """The code of a kind, imported now."""
    return cast(GeneratorCode, import_module(settings.code))


def chooser_of(settings: GeneratorKind) -> ChoosesImages:
    """The code of a kind that chooses images."""
    return cast(ChoosesImages, import_module(settings.code))
