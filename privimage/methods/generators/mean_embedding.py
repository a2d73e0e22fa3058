"""The mean embedding kind (DP-MERF, Harder, Adamczewski and Park 2021, arXiv 2002.11603), and its critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import dp_accounting as dpa
from pydantic import Field

from privimage.config.classifier import ClassifierConfig
from privimage.config.form import Section
from privimage.config.images import ImageConfig
from privimage.data.facts import SensitiveFacts
from privimage.methods.generator import FromPublic, GeneratorKind, check_levels
from privimage.methods.selection import SelectionStrategy
from privimage.privacy.events import times
from privimage.privacy.mechanisms import ClassSumRounds

__all__ = ["MeanEmbedding", "MeanEmbeddingSampling"]

_SUMMED = (
    "Fine-tuning read all training images for each of its sums over all of them; nothing was sampled, and nothing gained by "
    "sampling."
)


_WITHOUT_CRITICS = (
    "DP-MERF (Harder et al., 2021): random features of the sensitive images are added up for each class, with noise, once; a "
    "generator that sees no image is trained to draw images whose features have these means."
)
_WITH_CRITICS = (
    "A classifier learns from the selection to tell the classes apart; random features of the sensitive images, and of what it "
    "sees in them, are added up for each class, with noise, once; a generator that sees no image is trained to draw images whose "
    "features have these means. Then another classifier learns from the selection and from what was drawn, and the same is done "
    "with what it sees."
)


class MeanEmbeddingSampling(Section):
    """How images are chosen together, where public images were selected."""

    public_images: Literal["none", "mixed", "unchanged"] | None = Field(
        default=None,
        title="What comes of public images",
        description="With generator merf and a selection, images are chosen together, among drawn ones and mixtures of two selected public "
        "images each (mixed, the default there), or these unchanged: then see to their licence, and to the people in them. With none, and "
        "by default elsewhere, all are drawn.",
    )
    mixer_steps: int = Field(
        default=800, ge=1, le=10_000_000, description="Optimizer steps of the autoencoder that mixes public images."
    )
    reject_below: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Where images are chosen together, drawn ones in which the second critic does not see their class are left out "
        "if it sees it in less than this share of all drawn ones; 1 = always, 0 = never. Others are looked at always.",
    )


class MeanEmbedding(GeneratorKind):
    """A generator that is trained to match noisy mean embeddings of the classes, and sees no image.

    Without a selection it is DP-MERF. With a selection, `critic_share` of the first embedding is of what a critic sees: a
    classifier that was trained on selected public images. A second embedding follows, of what another critic sees, which is
    trained on these and on images that were drawn after the first.
    """

    code: ClassVar[str] = "privimage.generators.mean_embedding.kind"

    kind: Literal["mean_embedding"] = Field(
        default="mean_embedding", description="Trained on noisy mean embeddings instead of by DP-SGD."
    )
    num_features: int = Field(
        default=2000,
        ge=2,
        le=100_000,
        multiple_of=2,
        title="Number of features",
        description="Numbers of an image's embedding: cosines and sines of random directions.",
    )
    lengthscale: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Width of the kernel: a Euclidean distance of images with pixels in [-1, 1]; none = 0.4 times the median "
        "distance of public images.",
    )
    critic_features: int = Field(
        default=2000,
        ge=2,
        le=100_000,
        multiple_of=2,
        title="Critic features",
        description="Those of what each of two critics sees, where there is a selection.",
    )
    critic_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        title="Critic share",
        description="Weight of each critic's features among its own and those before, 0 to 1.",
    )
    critic_from: float = Field(
        default=0.6,
        gt=0,
        lt=1,
        title="Critic from",
        description="After this share of the steps the second critic is trained, and its features count too.",
    )
    critic_channels: int = Field(
        default=16, ge=4, le=256, title="Critic channels", description="Channels of a critic's first level."
    )
    critic_images: int = Field(
        default=4000,
        ge=10,
        le=10_000_000,
        title="Critic images",
        description="Selected public images that critics are trained on, at most; the second on as many drawn ones, too.",
    )
    critic_steps: int = Field(
        default=400,
        ge=1,
        le=10_000_000,
        title="Critic steps",
        description="About how many steps each critic is trained.",
    )
    critic_attempts: int = Field(
        default=4,
        ge=1,
        le=1000,
        title="Critic attempts",
        description="Images painted for each that is drawn: the first whose class the second critic sees is taken, else the last.",
    )
    base_channels: int = Field(default=16, ge=8, le=512, multiple_of=8, description="Channels of the finest level.")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2, 2),
        min_length=2,
        max_length=6,
        description="Channel factor per level; each level halves the size.",
    )
    latent_dim: int = Field(default=16, ge=1, le=1024, description="Random numbers that an image is made of.")
    num_steps: int = Field(default=2500, ge=2, le=10_000_000, description="Optimizer steps on noisy embeddings.")
    batch_size: int = Field(
        default=200,
        ge=1,
        le=65_536,
        description="Images of a step; rounded up to as many of each class, and an even number.",
    )
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="Peak learning rate of Adam (cosine to zero).")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Decay of the weight average per step.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Seed of directions, first weights and training; that of the noise is secret.",
    )

    horizontal_flip: bool = Field(
        default=False, description="Mirror the images that critics and mixer learn from; wrong for letters and digits."
    )
    sampling: MeanEmbeddingSampling = Field(
        default=MeanEmbeddingSampling(), description="Choosing images together, where public images were selected."
    )

    def dimensions(self, *, with_critic: bool) -> tuple[int, ...]:
        """Numbers that an image adds to its class's sum, in each release: features, and one that counts it."""
        if not with_critic:
            return (self.num_features + 1,)
        return self.num_features + self.critic_features + 1, self.critic_features + 1

    def mechanism(
        self, facts: SensitiveFacts, selection: SelectionStrategy, *, noise_multiplier: float
    ) -> ClassSumRounds:
        return ClassSumRounds(
            num_images=facts.num_train,
            num_classes=len(facts.class_names),
            dimensions=self.dimensions(with_critic=selection.selects),
            noise_multiplier=noise_multiplier,
        )

    @classmethod
    def is_charged_as(cls, event: dpa.DpEvent) -> bool:
        return isinstance(times(event)[0], dpa.GaussianDpEvent)

    @classmethod
    def sampling_in_words(cls, events: Sequence[dpa.DpEvent]) -> str:
        return _SUMMED

    @classmethod
    def in_words(cls, *, selects: bool, finetunes: bool) -> str:
        return _WITH_CRITICS if selects else _WITHOUT_CRITICS

    def public_images(self, selection: SelectionStrategy) -> FromPublic:
        return self.sampling.public_images or ("mixed" if selection.selects else "none")

    def check(self, image: ImageConfig, selection: SelectionStrategy) -> None:
        if selection.keeps_public_labels:
            raise ValueError(
                "generator.kind mean_embedding is trained on noisy mean embeddings of the sensitive classes, but "
                f"selection.strategy is {selection.strategy}: set it to semantic, random or none"
            )
        if not selection.selects and self.public_images(selection) != "none":
            raise ValueError(
                f"generator.sampling.public_images is {self.sampling.public_images}, but with selection.strategy "
                f"{selection.strategy} there are none to choose from: leave it out, or set it to none"
            )
        check_levels("generator", self.channel_multipliers, image.resolution)

    def fields_of(self, stage: str, selection: SelectionStrategy, classifier: ClassifierConfig) -> dict[str, Any]:
        match stage:
            case "pretrain":
                return self._pretrain_fields(selection, classifier)
            case "finetune":
                # All settings are in what `pretrain` writes, which it starts from; those that critics learn by are so through the
                # bytes of the first critic.
                return self.fields()
            case "synthesize" if self.public_images(selection) == "none":
                return self.fields()
            case "synthesize":
                mixed = self.public_images(selection) == "mixed"
                flip = {"horizontal_flip": self.horizontal_flip} if mixed else {}
                own = self.sampling.model_dump(mode="json", exclude=set() if mixed else {"mixer_steps"})
                return {"kind": self.kind, "sampling": {**own, "public_images": self.public_images(selection)}, **flip}
            case _:
                return super().fields_of(stage, selection, classifier)

    def _pretrain_fields(self, selection: SelectionStrategy, classifier: ClassifierConfig) -> dict[str, Any]:
        """Without what only a critic has, where there is none; with what critics learn by beside their own settings."""
        if not selection.selects:
            critics = {name for name in type(self).model_fields if name.startswith("critic_")}
            return self.model_dump(mode="json", exclude={"sampling", "horizontal_flip", *critics})
        learn_by = {"learning_rate", "weight_decay", "augment"}
        return {
            **self.model_dump(mode="json", exclude={"sampling"}),
            "classifier": classifier.model_dump(mode="json", include=learn_by),
        }
