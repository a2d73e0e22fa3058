"""What the synthetic images are good for: train a small classifier on them, test it on real ones.

All images stay in memory as uint8; a data set that needs more is sub-sampled by the caller. The test result is
computed from sensitive images without noise: internal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from privimage.config import EvaluateConfig
from privimage.errors import DataError

__all__ = ["UtilityResult", "test", "train_on_synthetic"]

WIDTHS = (32, 64, 128)
TEST_BATCH = 1024

Progress = Callable[[Iterable[int], str, int | None], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class UtilityResult:
    """How a classifier did on test images; shares lie in [0, 1]."""

    accuracy: float
    per_class: tuple[float | None, ...]
    """Share of each class's images that was recognised; None for a class without test images."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (row) and predicted class (column)."""
    num_images: int


def train_on_synthetic(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    config: EvaluateConfig,
    device: torch.device | str,
    progress: Progress = lambda epochs, description, total: epochs,
) -> nn.Module:
    """A small convolutional classifier, trained from scratch by Adam with a cosine schedule, in evaluation mode.

    Reproducible for one `config.seed` on one kind of hardware; leaves the global random state as it found it.
    Images are shifted by up to one pixel at random, never mirrored.

    Args:
        images: uint8, shape (images, 1 or 3, height, width), at least 8 x 8 pixels.
        labels: class numbers in 0..num_classes - 1, shape (images,).
        progress: wraps the iterable of epochs, given a description and their number.

    Returns:
        float32 images in [-1, 1] to logits, shape (images, num_classes).

    Raises:
        DataError: images or labels have another form.
    """
    images, labels = _checked(images, labels, num_classes)
    generator = torch.Generator().manual_seed(config.seed)
    model = _classifier(images.shape[1], num_classes, config.seed).to(device)
    # Last dimension = channels, so that one gather yields each image's own window.
    padded = functional.pad(_normalised(images), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1).to(device)
    labels = labels.to(device)
    steps = math.ceil(len(images) / config.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.epochs * steps)
    model.train()
    for _ in progress(range(config.epochs), "Training on synthetic images", config.epochs):
        order = torch.randperm(len(images), generator=generator)
        offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
        for start in range(0, len(images), config.batch_size):
            rows = order[start : start + config.batch_size].to(device)
            batch = _windows(padded, rows, offsets[start : start + config.batch_size].to(device))
            loss = functional.cross_entropy(model(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def test(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> UtilityResult:
    """How `model` does on labelled images; it stays on its device, in evaluation mode.

    Args:
        model: as `train_on_synthetic` returns it.
        images: uint8, shape (images, 1 or 3, height, width).
        labels: class numbers in 0..num_classes - 1, shape (images,).

    Raises:
        DataError: images or labels have another form.
    """
    images, labels = _checked(images, labels, num_classes)
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        batches = torch.split(images, TEST_BATCH)
        predicted = torch.cat([model(_normalised(batch.to(device))).argmax(dim=1).cpu() for batch in batches])
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    correct, totals = counts.diagonal().tolist(), counts.sum(dim=1).tolist()
    return UtilityResult(
        accuracy=sum(correct) / len(images),
        per_class=tuple(right / total if total else None for right, total in zip(correct, totals, strict=True)),
        confusion=tuple(tuple(row) for row in counts.tolist()),
        num_images=len(images),
    )


test.__test__ = False  # type: ignore[attr-defined]  # pytest would collect the function by its name


def _classifier(channels: int, num_classes: int, seed: int) -> nn.Sequential:
    """Three levels of two convolutions, each level half the size; about 0.15 million parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first, second, third = WIDTHS
        return nn.Sequential(
            *_convolution(channels, first),
            *_convolution(first, first),
            nn.MaxPool2d(2),
            *_convolution(first, second),
            *_convolution(second, second),
            nn.MaxPool2d(2),
            *_convolution(second, third),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * third, num_classes),
        )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Convolution, normalisation, activation; GroupNorm, because the last batch of an epoch may hold one image."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()


def _windows(padded: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Each chosen image, shifted by its offset: channels first, out of channels-last images with a border of 1."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    y = offsets[:, 0, None] + torch.arange(height, device=padded.device)
    x = offsets[:, 1, None] + torch.arange(width, device=padded.device)
    return padded[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _checked(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images and labels on the CPU, once their form is what it must be."""
    images, labels = images.cpu(), labels.cpu().long()
    good = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) >= 8
    if not good or not len(images) or labels.shape != (len(images),):
        raise DataError(
            "The utility classifier needs uint8 images of shape (images, 1 or 3, height, width) from 8 x 8 pixels, and "
            f"one label each; found {images.dtype} of shape {tuple(images.shape)} and {tuple(labels.shape)} labels."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"Some labels lie outside 0..{num_classes - 1}, the class numbers: check the class list.")
    return images, labels
