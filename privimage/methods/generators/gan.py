"""The GAN kind: a painter, and a discriminator, which alone learns from sensitive images."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from privimage.config.classifier import ClassifierConfig
from privimage.config.form import Section
from privimage.config.images import ImageConfig
from privimage.methods.generator import check_levels
from privimage.methods.selection import SelectionStrategy
from privimage.methods.training import FinetuneConfig, LearnsByGradients

__all__ = ["Gan", "GanConfig", "GanFinetune"]


class GanConfig(Section):
    """The networks of the GAN: a class-conditional residual generator, and a discriminator with projection."""

    base_channels: int = Field(default=32, ge=8, le=512, multiple_of=8, description="Channels of the finest level.")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2, 2),
        min_length=2,
        max_length=6,
        description="Channel factor per level; each level halves the size.",
    )
    latent_dim: int = Field(default=64, ge=1, le=1024, description="Random numbers that an image is made of.")
    gradient_penalty: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        title="Gradient penalty",
        description="Weight of the discriminator's squared slope at real images, in pre-training.",
    )
    diversity: float = Field(
        default=0.1,
        ge=0,
        le=100,
        description="Weight of the likeness of images that are painted of one class from different numbers.",
    )


class GanFinetune(FinetuneConfig):
    """DP-SGD of the discriminator, and what the painter learns from it."""

    discriminator_steps: int = Field(
        default=1,
        ge=1,
        le=1000,
        title="Discriminator steps",
        description="DP-SGD steps of the discriminator for each step of the generator.",
    )
    generator_learning_rate: float = Field(
        default=5e-4,
        gt=0,
        le=1,
        title="Generator learning rate",
        description="learning rate of the generator's Adam.",
    )
    generator_batch_size: int = Field(
        default=128,
        ge=1,
        le=65_536,
        title="Generator batch size",
        description="images of a step of the generator.",
    )


class Gan(LearnsByGradients):
    """A GAN."""

    code: ClassVar[str] = "privimage.generators.gan.kind"

    kind: Literal["gan"] = Field(default="gan", description="A GAN.")
    network: GanConfig = Field(default=GanConfig(), description="Painter and discriminator.")
    finetune: GanFinetune = Field(default=GanFinetune(), description="DP-SGD fine-tuning.")

    @property
    def network_settings(self) -> dict[str, Any]:
        return self.network.model_dump(mode="json")

    def check(self, image: ImageConfig, selection: SelectionStrategy) -> None:
        if selection.keeps_public_labels:
            raise ValueError(
                f"selection.strategy {selection.strategy} needs a generator that learns of images without a label, which a GAN "
                "does not: set generator.kind to diffusion, or another strategy"
            )
        check_levels("generator.network", self.network.channel_multipliers, image.resolution)

    def fields_of(self, stage: str, selection: SelectionStrategy, classifier: ClassifierConfig) -> dict[str, Any]:
        match stage:
            case "pretrain" if selection.selects:
                return self.fields("network", "pretrain")
            case "pretrain":
                return {**self.fields("network"), "seed": self.pretrain.seed}
            case "finetune":
                return self.fields("finetune")
            case "synthesize":
                return self.fields()
            case _:
                return super().fields_of(stage, selection, classifier)
