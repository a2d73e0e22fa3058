"""Mixtures of public images: an autoencoder of them, and what it decodes between two.

A code is a few numbers of mean 0 and variance 1, and some noise is added to it in training, so that what lies between two codes is
decoded to an image, too, and not to one image laid over the other. It learns in seconds what the painter of mean embeddings, which
sees no image, never learns: what images look like. What it mixes is like no single public image, and has the class of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from privimage.data.pixels import from_pixels, to_pixels

__all__ = ["Mixer", "mixtures", "train_mixer"]

CODE = 64
CHANNELS = 24
BATCH = 64
NOISE = 0.1
LEARNING_RATE = 2e-3
SHARE = (0.3, 0.7)  # of the first of two codes: nearer to one of them, it would be nearly that image
_AT_ONCE = 500


class Mixer(nn.Module):
    """An autoencoder of images in [-1, 1], (batch, channels, resolution, resolution), with codes (batch, CODE)."""

    def __init__(self, *, channels: int, resolution: int) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv2d(channels, CHANNELS, 3, padding=1), nn.SiLU()]
        up: list[nn.Module] = []
        size, width = resolution, CHANNELS
        while size > 4 and size % 2 == 0:
            target = CHANNELS if size == resolution else min(2 * width, 4 * CHANNELS)
            down += [nn.Conv2d(width, target, 4, stride=2, padding=1), nn.SiLU()]
            up = [nn.SiLU(), nn.ConvTranspose2d(target, width, 4, stride=2, padding=1), *up]
            size, width = size // 2, target
        self._small = (width, size, size)
        numbers = math.prod(self._small)
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(numbers, CODE))
        self.widen = nn.Linear(CODE, numbers)
        self.decoder = nn.Sequential(*up, nn.SiLU(), nn.Conv2d(CHANNELS, channels, 3, padding=1), nn.Tanh())

    def encode(self, images: Tensor) -> Tensor:
        return functional.layer_norm(self.encoder(images), (CODE,))

    def decode(self, codes: Tensor) -> Tensor:
        images: Tensor = self.decoder(self.widen(codes).unflatten(1, self._small))
        return images


def train_mixer(
    images: Tensor,
    *,
    num_steps: int,
    seed: int,
    horizontal_flip: bool,
    device: torch.device,
    on_step: Callable[[int], None] = lambda step: None,
) -> Mixer:
    """An autoencoder of public `images`, uint8 NCHW.

    Args:
        seed: of first weights, batches and noise.
        horizontal_flip: learn from mirrored images, too.
        on_step: called after each step with its number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = Mixer(channels=images.shape[1], resolution=images.shape[2]).to(device)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, 0.005 * LEARNING_RATE)
    for step in range(1, num_steps + 1):
        batch = from_pixels(images[torch.randint(len(images), (BATCH,), generator=random)].to(device))
        if horizontal_flip and step % 2:
            batch = batch.flip(3)
        codes = mixer.encode(batch)
        noise = NOISE * torch.randn(codes.shape, generator=random).to(device)
        optimizer.zero_grad()
        functional.mse_loss(mixer.decode(codes + noise), batch).backward()
        optimizer.step()
        schedule.step()
        on_step(step)
    return mixer.eval().requires_grad_(False)


@torch.no_grad()
def mixtures(mixer: Mixer, images: Tensor, labels: Tensor, each: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """`each` mixtures of two different images of each class, uint8 NCHW, and their classes; none of a class that has but one image.

    Args:
        images: public, uint8 NCHW; labels: their classes, (images,).
    """
    random = torch.Generator().manual_seed(seed)
    device = next(mixer.parameters()).device
    codes = torch.cat([mixer.encode(from_pixels(part.to(device))) for part in images.split(_AT_ONCE)])
    mixed, classes = [images[:0]], [labels[:0]]
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < 2:
            continue
        first = torch.randint(len(rows), (each,), generator=random)
        second = (first + torch.randint(1, len(rows), (each,), generator=random)) % len(rows)
        share = (SHARE[0] + (SHARE[1] - SHARE[0]) * torch.rand(each, 1, generator=random)).to(device)
        between = share * codes[rows[first].to(device)] + (1 - share) * codes[rows[second].to(device)]
        decoded = [mixer.decode(functional.layer_norm(part, (CODE,))) for part in between.split(_AT_ONCE)]
        mixed.append(to_pixels(torch.cat(decoded)).cpu())
        classes.append(torch.full((each,), label, dtype=labels.dtype))
    return torch.cat(mixed), torch.cat(classes)
