"""A class-conditional U-Net with GroupNorm only: no layer mixes images, as DP-SGD demands."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from privimage.methods.generators.diffusion import DenoiserConfig

__all__ = ["Attention", "Block", "UNet"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(8, channels // 4), num_channels=channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a residual branch at zero, so that the block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Residual block; the embedding (noise level and label) scales and shifts the normalised features."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, attention: bool) -> None:
        super().__init__()
        self.norm_in = _norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm_out = _norm(channels_out)
        self.conv_out = _zero(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attention = Attention(channels_out) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(functional.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(functional.silu(self.norm_out(h) * (1 + scale) + shift))
        out: Tensor = self.attention((self.skip(x) + h) * math.sqrt(0.5))
        return out


class Attention(nn.Module):
    """Single-head self-attention over the pixels of one image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, channels, height * width).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(channels), dim=-1)  # (batch, query, key)
        mixed = (v @ weights.transpose(1, 2)).reshape(batch, channels, height, width)
        out: Tensor = x + self.out(mixed)
        return out


class UNet(nn.Module):
    """The raw network inside the denoiser.

    Args (of forward): `x` (batch, channels, height, width), `c_noise` (batch,), `labels` (batch,) int64 in
    0..num_classes, where `num_classes` means "no label". Returns the shape of `x`.
    """

    def __init__(self, config: DenoiserConfig, *, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        embedding = 4 * config.base_channels
        self.num_frequencies = config.base_channels // 2
        self.embed_noise = nn.Sequential(
            nn.Linear(2 * self.num_frequencies, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_label = nn.Embedding(num_classes + 1, embedding)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        for level, target in enumerate(widths):
            attention = level in config.attention_levels
            for _ in range(config.blocks_per_level):
                self.down.append(Block(width, target, embedding, attention))
                width = target
                skips.append(width)
            if level + 1 < len(widths):
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = Block(width, width, embedding, attention=bool(config.attention_levels))
        self.up = nn.ModuleList()
        for level, target in reversed(list(enumerate(widths))):
            attention = level in config.attention_levels
            for _ in range(config.blocks_per_level + 1):
                self.up.append(Block(width + skips.pop(), target, embedding, attention))
                width = target
            if level > 0:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.norm_out = _norm(width)
        self.conv_out = _zero(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(50.0), self.num_frequencies, device=x.device))
        angles = c_noise[:, None] * frequencies[None, :]
        embedding = self.embed_noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.embed_label(labels)
        embedding = functional.silu(embedding)
        h = self.conv_in(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        h = self.middle(h, embedding)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, Block) else layer(h)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return out
