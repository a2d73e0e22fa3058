"""Internal evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from privimage.config.form import Section

__all__ = ["ClassifierName", "EvaluateConfig"]


ClassifierName = Literal["cnn", "resnet", "wrn", "resnext", "logistic-regression", "mlp"]


class EvaluateConfig(Section):
    """Classifiers trained on synthetic images, and what is measured on held-out sensitive ones, below `private/`."""

    classifiers: tuple[ClassifierName, ...] = Field(
        default=("cnn", "logistic-regression"),
        min_length=1,
        max_length=6,
        description="Which classifiers are trained on the synthetic images; each name once.",
    )
    seeds: int = Field(
        default=1, ge=1, le=100, description="How often each is trained; figures get a deviation from 2."
    )
    validation: Literal["synthetic", "private"] = Field(
        default="synthetic",
        description="What chooses among them: held-out synthetic images, for free, or noisy counts on the sensitive "
        "validation images, charged out of what `privacy.validation_error` sets aside.",
    )
    held_out_fraction: float = Field(
        default=0.1, gt=0, lt=0.5, description="Share of the synthetic images that choose the epoch, not trained on."
    )
    learn_from: Literal["probabilities", "labels"] = Field(
        default="probabilities",
        title="Learn from",
        description="What they learn of a synthetic image: its probabilities, where the release has them, or its label alone.",
    )
    ceiling: bool = Field(
        default=True, description="Also train them on the sensitive images, as many steps, for comparison (private)."
    )
    safety: bool = Field(
        default=True, description="Also look for memorized training images and attack the generator (private)."
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Epochs of each training on synthetic images; none = 15, and of few images so many that there are 1,000 steps.",
    )
    batch_size: int = Field(default=32, ge=2, description="Images per step of these trainings.")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Their peak learning rate (Adam, cosine to zero)."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="The first of their seeds.")
    inception_weights: str | None = Field(
        default=None,
        title="Inception weights",
        description="Folder with clean-fid's inception-2015-12-05.pt; none = skip Inception figures if it is not cached.",
    )

    @model_validator(mode="after")
    def _each_classifier_once(self) -> EvaluateConfig:
        if len(set(self.classifiers)) < len(self.classifiers):
            raise ValueError(f"classifiers names one of them twice: {', '.join(self.classifiers)}")
        return self
