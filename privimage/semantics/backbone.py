"""A backbone as others see it: a network that was trained on public images, from its artifact, and its features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privimage.data.pixels import from_pixels
from privimage.methods.registry import BACKBONES
from privimage.payloads import BackboneAbout
from privimage.privacy.gradients import Precision, autocast
from privimage.store.artifacts import Artifact

__all__ = ["Backbone", "features_of", "open_backbone"]

AT_ONCE = 256


class Backbone(nn.Module):
    """A network that was trained on public images; in evaluation mode it sees each image by itself.

    Attributes:
        name: what tables and certificates call its features.
        num_features: numbers that `describe` gives for an image.
    """

    name: str
    num_features: int
    logits: Callable[[Tensor], Tensor] | None = None
    """From embeddings to the logits of public categories, if it knows any."""

    @abstractmethod
    def describe(self, images: Tensor) -> Tensor:
        """Features, (batch, num_features), of images in [-1, 1], (batch, C, H, W): what several layers make of them."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Fewer features, of the last layers, by which synthetic and real images are compared in evaluation."""


def open_backbone(artifact: Artifact, device: torch.device) -> Backbone:
    """The backbone of stage `classifier`, whatever kind wrote it, in evaluation mode."""
    kind = BackboneAbout.read(artifact).kind if BackboneAbout.FILE in artifact.names else "classifier"
    opened = cast(Backbone, import_module(BACKBONES.named(kind).code).open_backbone(artifact))
    return opened.to(device).eval()


@torch.no_grad()
def features_of(
    backbone: Backbone, images: Tensor, device: torch.device, precision: Precision = "float32"
) -> NDArray[np.float32]:
    """Features, float32 (images, features), of uint8 NCHW images; each row of its own image alone."""
    backbone.eval()
    with autocast(device, precision):
        parts = [backbone.describe(from_pixels(part.to(device))).float().cpu() for part in images.split(AT_ONCE)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)
