"""Settings of generators that learn by gradients of images, and what DP-SGD costs by them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import dp_accounting as dpa
from pydantic import Field, model_validator

from privimage.config.form import Section
from privimage.data.facts import SensitiveFacts
from privimage.methods.generator import GeneratorKind
from privimage.methods.selection import SelectionStrategy
from privimage.privacy.events import times, without_cap
from privimage.privacy.mechanisms import DPSGDMechanism

__all__ = ["FinetuneConfig", "LearnsByGradients", "PretrainConfig"]

_UNCUT = "Every step of fine-tuning drew each image by an independent coin (Poisson sampling), as accounted; batches had no cap."
_CUT = (
    "Every step of fine-tuning drew each image by an independent coin (Poisson sampling); larger batches than the cap were "
    "cut to a random subset, as accounted."
)


class PretrainConfig(Section):
    """Training of the generator on the selected public images (no privacy cost)."""

    num_steps: int = Field(default=1500, ge=1, le=10_000_000, description="Optimizer steps.")
    batch_size: int = Field(default=128, ge=1, le=65_536, description="Images per step.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of Adam.")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="Decay of the weight average per step.")
    horizontal_flip: bool = Field(default=False, description="Mirror images at random; wrong for letters and digits.")
    sharpness: float = Field(
        default=3.0,
        ge=0.1,
        le=100,
        description="Power of the probabilities by which images stand for a class, where single images were selected: 1 = as they "
        "are; higher, and a class is learned from what is surest of it.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed (public training is reproducible).")


class FinetuneConfig(Section):
    """DP-SGD on the sensitive images. Its noise is derived from `privacy`, never given here."""

    num_steps: int = Field(
        default=100,
        ge=0,
        le=10_000_000,
        description="DP-SGD steps; 0 = no fine-tuning: what feature means tell is all that is learned (selection.strategy images).",
    )
    expected_batch_size: int = Field(default=256, ge=1, description="Mean of the Poisson batch; at most all images.")
    largest_batch_size: int | None = Field(
        default=None,
        ge=1,
        title="Largest batch size",
        description="Cap on the images of one step, which bounds memory and time; none = no cap. Nearly free from 6 "
        "standard deviations (sqrt(expected_batch_size)) above the mean.",
    )
    noise_samples: int = Field(default=4, ge=1, le=128, description="Noise draws per image, averaged before clipping.")
    max_grad_norm: float = Field(default=1e-3, ge=1e-6, le=1e6, description="Per-image gradient norm bound.")
    learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Learning rate of Adam.")
    ema_decay: float = Field(default=0.95, ge=0, lt=1, description="Decay of the weight average per step.")
    horizontal_flip: bool = Field(
        default=False,
        description="Mirror at random, each noise draw of an image by itself; wrong for letters and digits.",
    )
    checkpoint_steps: int = Field(
        default=10, ge=1, description="Steps between checkpoints: at most so many are lost, and charged, per crash."
    )
    restart_allowance: int = Field(
        default=20, ge=0, description="Extra steps accounted for from the start, to resume after crashes."
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> FinetuneConfig:
        largest = self.largest_batch_size
        if largest is not None and largest < self.expected_batch_size:
            raise ValueError(
                f"largest_batch_size ({largest}) is smaller than expected_batch_size ({self.expected_batch_size}): most "
                "batches would be cut, at a high price; raise it"
            )
        if self.restart_allowance and self.restart_allowance < self.checkpoint_steps:
            raise ValueError(
                f"restart_allowance ({self.restart_allowance}) is smaller than checkpoint_steps ({self.checkpoint_steps}): no "
                "crash could be resumed; raise it, or set it to 0 on purpose"
            )
        return self


class LearnsByGradients(GeneratorKind):
    """A kind that is pre-trained on public images, and fine-tuned by DP-SGD."""

    pretrain: PretrainConfig = Field(default=PretrainConfig(), description="Training on the selection.")
    finetune: FinetuneConfig = Field(default=FinetuneConfig(), description="DP-SGD fine-tuning.")

    @property
    @abstractmethod
    def network_settings(self) -> dict[str, Any]:
        """What rebuilds the network, as JSON."""

    @property
    def finetunes(self) -> bool:
        return self.finetune.num_steps > 0

    def mechanism(
        self, facts: SensitiveFacts, selection: SelectionStrategy, *, noise_multiplier: float
    ) -> DPSGDMechanism:
        settings = self.finetune
        return DPSGDMechanism(
            num_images=facts.num_train,
            expected_batch_size=settings.expected_batch_size,
            num_steps=settings.num_steps,
            restart_allowance=settings.restart_allowance,
            max_grad_norm=settings.max_grad_norm,
            noise_multiplier=noise_multiplier,
            largest_batch_size=settings.largest_batch_size,
        )

    @classmethod
    def is_charged_as(cls, event: dpa.DpEvent) -> bool:
        return not isinstance(times(event)[0], dpa.GaussianDpEvent)

    @classmethod
    def sampling_in_words(cls, events: Sequence[dpa.DpEvent]) -> str:
        return _UNCUT if all(without_cap(event) == event for event in events) else _CUT

    @classmethod
    def in_words(cls, *, selects: bool, finetunes: bool) -> str:
        if not finetunes:
            return "A generator is trained on these by their probabilities; it sees no sensitive image, and draws the images."
        begun = (
            "A generator is trained on these, and" if selects else "A generator, without pre-training (as in DPDM), is"
        )
        return f"{begun} fine-tuned on the sensitive images with DP-SGD; it then draws the images."

    @property
    def restart_allowance(self) -> int:
        return self.finetune.restart_allowance

    @property
    def checkpoint_steps(self) -> int:
        return self.finetune.checkpoint_steps
