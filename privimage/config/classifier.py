"""The semantic classifier."""

from __future__ import annotations

from pydantic import Field

from privimage.config.form import Section

__all__ = ["ClassifierConfig"]


class ClassifierConfig(Section):
    """The semantic classifier: a residual network trained on the public images."""

    base_channels: int = Field(default=32, ge=4, le=256, description="Channels of the first level.")
    blocks: tuple[int, ...] = Field(
        default=(1, 1, 1),
        min_length=1,
        max_length=5,
        description="Residual blocks per level; each level halves the size.",
    )
    bottleneck: bool = Field(default=False, description="Bottleneck blocks, as in ResNet-50.")
    epochs: int = Field(default=6, ge=1, le=1000, description="Passes over the public training images.")
    batch_size: int = Field(default=128, ge=2, le=65_536, description="Images per optimizer step.")
    learning_rate: float = Field(default=0.05, gt=0, le=10, description="Peak learning rate of SGD (cosine to zero).")
    weight_decay: float = Field(default=5e-4, ge=0, le=1, description="Weight decay of SGD.")
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="Share of public images held out.")
    augment: bool = Field(default=True, description="Random shifts and small rotations of the training images.")
    horizontal_flip: bool = Field(default=False, description="Also mirror at random; wrong for letters and digits.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed (public training is reproducible).")
