"""The diffusion kind: an EDM denoiser (Karras et al. 2022, arXiv 2206.00364), as in PRIVIMAGE."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from privimage.config.classifier import ClassifierConfig
from privimage.config.form import Section
from privimage.config.images import ImageConfig
from privimage.data.facts import SensitiveFacts
from privimage.methods.generator import check_levels
from privimage.methods.selection import SelectionStrategy
from privimage.methods.training import FinetuneConfig, LearnsByGradients, PretrainConfig
from privimage.privacy.mechanisms import ClassSums

__all__ = ["ClassMeans", "DenoiserConfig", "Diffusion", "DiffusionFinetune", "DiffusionPretrain", "DiffusionSampling"]

STEPS_FOR_A_LOOK = 12


class DenoiserConfig(Section):
    """The network: an EDM-preconditioned, class-conditional U-Net with GroupNorm."""

    base_channels: int = Field(default=32, ge=8, le=512, multiple_of=8, description="Channels of the finest level.")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2), min_length=1, max_length=5, description="Channel factor per level; each level halves the size."
    )
    blocks_per_level: int = Field(default=1, ge=1, le=4, description="Residual blocks per level and direction.")
    attention_levels: tuple[int, ...] = Field(
        default=(), description="Levels with self-attention, counted from 0 = the finest."
    )
    sigma_data: float = Field(default=0.5, gt=0, le=2, description="Standard deviation of the pixels in [-1, 1].")

    @model_validator(mode="after")
    def _attention_is_at_levels(self) -> DenoiserConfig:
        levels = len(self.channel_multipliers)
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise ValueError(f"attention_levels must lie in 0..{levels - 1}, found {self.attention_levels}")
        return self


class DiffusionPretrain(PretrainConfig):
    """Training of a denoiser on the selected public images (no privacy cost)."""

    label_dropout: float = Field(default=0.1, ge=0, le=0.9, description="Share of labels hidden, for guidance.")
    sigma_mean: float = Field(default=-1.2, description="Mean of ln sigma, the noise level drawn in training.")
    sigma_std: float = Field(default=1.2, gt=0, description="Standard deviation of ln sigma.")


class ClassMeans(Section):
    """The noisy mean image of each class, released once, and the warm-up of the generator with these."""

    num_steps: int = Field(ge=1, le=10_000_000, title="Number of steps", description="Optimizer steps of the warm-up.")
    batch_size: int = Field(default=128, ge=2, le=65_536, description="Rows per step, mean and public images together.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of Adam.")
    ema_decay: float = Field(default=0.98, ge=0, lt=1, description="Decay of the weight average per step.")
    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the rows that are mean images; the others are selected public ones. Without a selection "
        "all are mean images.",
    )
    sigma_min: float = Field(
        default=0.8,
        gt=0,
        description="Lowest noise level of mean images, and the highest of public ones: above it, the best denoised "
        "image is nearly the mean of the class.",
    )
    sigma_max: float = Field(default=40.0, gt=0, description="Highest noise level of mean images.")
    max_norm: float | None = Field(
        default=None,
        gt=0,
        title="Largest norm",
        description="Bound on the norm of an image's difference from the mean public image, pixels in [-1, 1]; longer ones "
        "are cut. None = the median of public images.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of the warm-up (it is reproducible; the noise is not)."
    )

    @model_validator(mode="after")
    def _sigmas_ordered(self) -> ClassMeans:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


class DiffusionFinetune(FinetuneConfig):
    """DP-SGD on the sensitive images. Its noise is derived from `privacy`, never given here."""

    label_dropout: float = Field(default=0.1, ge=0, le=0.9, description="Share of images trained without their label.")
    sigma_mean: float = Field(default=-1.2, description="Mean of ln sigma, the noise level drawn in training.")
    sigma_std: float = Field(default=1.2, gt=0, description="Standard deviation of ln sigma.")


class DiffusionSampling(Section):
    """Noise levels and steps from noise to an image (Karras et al. 2022, Algorithm 1)."""

    num_steps: int = Field(
        default=18, ge=2, le=1000, description="Evaluations of the network per image; twice as many with guidance."
    )
    sigma_min: float = Field(default=0.03, gt=0, description="Smallest noise level; 0.008 is one level of 255.")
    sigma_max: float = Field(default=80.0, gt=0, description="Largest noise level.")
    rho: float = Field(default=7.0, gt=0, description="Spacing of the noise levels (Karras et al. 2022, Eq. 5).")
    guidance: float = Field(
        default=0.0, ge=0, le=20, description="Classifier-free guidance weight; 0 = none, which is twice as fast."
    )

    @model_validator(mode="after")
    def _sigmas_ordered(self) -> DiffusionSampling:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max})")
        return self


class Diffusion(LearnsByGradients):
    """A generator by diffusion."""

    code: ClassVar[str] = "privimage.generators.diffusion.kind"
    can_be_audited: ClassVar[bool] = True

    kind: Literal["diffusion"] = Field(default="diffusion", description="A generator by diffusion.")
    network: DenoiserConfig = Field(default=DenoiserConfig(), description="The denoiser.")
    pretrain: DiffusionPretrain = Field(default=DiffusionPretrain(), description="Training on the selection.")
    class_means: ClassMeans | None = Field(
        default=None,
        title="Class mean images",
        description="Release the noisy mean image of each class, and train on these between pre-training and fine-tuning; "
        "none = not, and nothing is paid for it.",
    )
    finetune: DiffusionFinetune = Field(default=DiffusionFinetune(), description="DP-SGD fine-tuning.")
    sampling: DiffusionSampling = Field(default=DiffusionSampling(), description="From noise to images.")

    @property
    def further_stages(self) -> tuple[str, ...]:
        return ("class_means", "warmup") if self.class_means else ()

    def class_mean_sums(self, facts: SensitiveFacts, *, noise_multiplier: float) -> ClassSums | None:
        if self.class_means is None:
            return None
        return ClassSums(
            num_images=facts.num_train,
            num_classes=len(facts.class_names),
            dimension=facts.channels * facts.resolution**2,
            noise_multiplier=noise_multiplier,
        )

    @property
    def network_settings(self) -> dict[str, Any]:
        return self.network.model_dump(mode="json")

    def check(self, image: ImageConfig, selection: SelectionStrategy) -> None:
        if selection.keeps_public_labels and not self.pretrain.label_dropout:
            raise ValueError(
                f"selection.strategy {selection.strategy} needs a generator.pretrain.label_dropout above 0: the sensitive classes "
                "start from what the generator learned of images without a label"
            )
        if selection.keeps_public_labels and self.class_means:
            raise ValueError(
                f"generator.class_means is given, but with selection.strategy {selection.strategy} the generator is trained on public "
                "labels, which class mean images do not have: leave it out, or choose another strategy"
            )
        check_levels("generator.network", self.network.channel_multipliers, image.resolution)

    def for_a_look(self) -> Self:
        few = self.sampling.model_copy(update={"num_steps": min(self.sampling.num_steps, STEPS_FOR_A_LOOK)})
        return self.model_copy(update={"sampling": few})

    def fields_of(self, stage: str, selection: SelectionStrategy, classifier: ClassifierConfig) -> dict[str, Any]:
        shared = {"sigma_mean", "sigma_std", "label_dropout", "horizontal_flip"}
        match stage:
            case "pretrain" if selection.selects:
                return self.fields("network", "pretrain")
            case "pretrain":
                # Only the seed of the first weights: another setting that does nothing must not cause another fine-tuning.
                return {**self.fields("network"), "seed": self.pretrain.seed}
            case "class_means":
                return {"max_norm": self.class_means.max_norm if self.class_means else None}
            case "warmup" if self.class_means:
                return {
                    "class_means": self.class_means.model_dump(mode="json", exclude={"max_norm"}),
                    "pretrain": self.pretrain.model_dump(mode="json", include=shared),
                }
            case "finetune" | "audit":
                return self.fields("finetune")
            case "synthesize":
                return self.fields("sampling")
            case _:
                return super().fields_of(stage, selection, classifier)
