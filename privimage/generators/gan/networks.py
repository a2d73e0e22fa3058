"""The two networks of a small BigGAN (Brock et al. 2019, arXiv:1809.11096), in which no layer mixes images.

Where BigGAN normalises by the batch, the images of one batch would share statistics. Here the painter has GroupNorm,
modulated by latent numbers and label, so that an image is the same in every batch, and the discriminator has GroupNorm
too, as DP-SGD demands. Of the two convolutions of a block one is computed at the smaller size, which halves the time.
Spectral norm is left out: it uses a weight by other functions than layers, whose per-image gradients the engine does
not know.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from privimage.methods.generators.gan import GanConfig
from privimage.methods.generators.mean_embedding import MeanEmbedding

__all__ = ["Discriminator", "Painter"]


def _norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(8, channels // 4), num_channels=channels, affine=affine)


class _Modulated(nn.Module):
    """Normalisation whose scale and shift follow from the embedding of label and latent numbers."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = _norm(channels, affine=False)
        self.modulation = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


class _Up(nn.Module):
    """Residual block that doubles the size."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = _Modulated(channels_in, embedding)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = _Modulated(channels_out, embedding)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = functional.interpolate(self.conv_in(functional.relu(self.norm_in(x, embedding))), scale_factor=2)
        h = self.conv_out(functional.relu(self.norm_out(h, embedding)))
        out: Tensor = functional.interpolate(self.skip(x), scale_factor=2) + h
        return out


class Painter(nn.Module):
    """From latent numbers (batch, latent_dim), standard normal, and labels (batch,) to images in [-1, 1]."""

    def __init__(self, config: GanConfig | MeanEmbedding, *, channels: int, resolution: int, num_classes: int) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        embedding = 2 * config.latent_dim
        self.size = resolution // 2 ** (len(widths) - 1)
        self.embed_label = nn.Embedding(num_classes, config.latent_dim)
        self.begin = nn.Linear(embedding, widths[0] * self.size**2)
        self.blocks = nn.ModuleList(_Up(width, target, embedding) for width, target in pairwise(widths))
        self.norm = _norm(widths[-1])
        self.paint = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        embedding = torch.cat([latent, self.embed_label(labels)], dim=1)
        h = self.begin(embedding).unflatten(1, (-1, self.size, self.size))
        for block in self.blocks:
            h = block(h, embedding)
        return torch.tanh(self.paint(functional.relu(self.norm(h))))


class _Down(nn.Module):
    """Residual block that halves the size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(channels_in), _norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_in, 3, padding=1)
        self.conv_out = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.avg_pool2d(self.conv_in(functional.silu(self.norm_in(x))), 2)
        h = self.conv_out(functional.silu(self.norm_out(h)))
        out: Tensor = self.skip(functional.avg_pool2d(x, 2)) + h
        return out


class Discriminator(nn.Module):
    """Scores (batch,) of images in [-1, 1] with labels (batch,): high for real ones.

    The score is linear in the features plus their projection on the label's embedding (Miyato and Koyama 2018,
    arXiv:1802.05637). Features are smooth in the image, so that gradients are nowhere flat.
    """

    def __init__(self, config: GanConfig, *, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        self.begin = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Down(width, target) for width, target in pairwise(widths))
        self.norm = _norm(widths[-1])
        self.score = nn.Linear(widths[-1], 1)
        self.embed_label = nn.Embedding(num_classes, widths[-1])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = self.begin(images)
        for block in self.blocks:
            h = block(h)
        features = functional.silu(self.norm(h)).mean((2, 3))
        projection = (features * self.embed_label(labels)).sum(1) / math.sqrt(features.shape[1])
        out: Tensor = self.score(features)[:, 0] + projection
        return out
