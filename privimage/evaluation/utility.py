"""What the synthetic images are good for: train classifiers on them, test these on real ones.

Which epoch of a training is kept is decided by images that were held out of the very set that it trains on. So what
was trained on synthetic images depends on nothing else. All images stay in memory as uint8; a data set that needs more
is sub-sampled by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from privimage.config.evaluate import EvaluateConfig
from privimage.data.pixels import from_pixels
from privimage.errors import DataError
from privimage.evaluation.classifiers import ARCHITECTURES, new_classifier

__all__ = ["Trained", "UtilityResult", "check_enough", "check_shape", "hold_out", "predict", "test", "train"]

TEST_BATCH = 1024
EPOCHS = 15
# With fewer steps classifiers stop before real images, too, have taught them what they can.
LEAST_STEPS = 1000
LEAST_OF_A_CLASS = 2  # one to train on, one to choose the epoch by

Progress = Callable[[Iterable[int], str, int | None], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A classifier after its best epoch, in evaluation mode.

    Attributes:
        model: float32 images in [-1, 1] to logits, shape (images, num_classes).
        accuracy: share of the held-out images that it recognises.
        epoch: after how many epochs that was, or parts of the training.
        curve: that share after each epoch.
        num_steps: optimizer steps in all.
    """

    model: nn.Module
    accuracy: float
    epoch: int
    curve: tuple[float, ...]
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class UtilityResult:
    """How a classifier did on test images; shares lie in [0, 1]."""

    accuracy: float
    per_class: tuple[float | None, ...]
    """Share of each class's images that was recognised; None for a class without test images."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (row) and predicted class (column)."""
    num_images: int


def check_enough(labels: Tensor, class_names: Sequence[str]) -> None:
    """Raise DataError unless there are synthetic images of every class, enough to train on and to choose by."""
    counts = torch.bincount(labels, minlength=len(class_names)).tolist()
    few = [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if count < LEAST_OF_A_CLASS]
    if few:
        raise DataError(
            f"There are too few synthetic images of {', '.join(few)}: classifiers need at least {LEAST_OF_A_CLASS} of each "
            f"class. Raise synthesize.num_images to at least {LEAST_OF_A_CLASS * len(class_names)}."
        )


def check_shape(images: Tensor, shape: Sequence[int]) -> None:
    """Raise DataError unless the images have the (channels, height, width) that classifiers were trained on."""
    if tuple(images.shape[1:]) != tuple(shape):
        trained, found = (" x ".join(map(str, sizes)) for sizes in (shape, images.shape[1:]))
        raise DataError(
            f"The classifiers were trained on images of {trained} (channels, height, width), these have {found}: train and "
            "test on the same `image` settings."
        )


def train(
    name: str,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    config: EvaluateConfig,
    device: torch.device | str,
    *,
    seed: int,
    probabilities: Tensor | None = None,
    num_steps: int | None = None,
    progress: Progress = lambda epochs, description, total: epochs,
    description: str = "Training",
) -> Trained:
    """The classifier `name`, trained from scratch by Adam with a cosine schedule.

    Reproducible for one seed on one kind of hardware; leaves the global random state as it found it. Where the
    architecture says so, images are shifted by up to one pixel at random; they are never mirrored.

    Args:
        images: uint8, shape (images, 1 or 3, height, width), at least 8 x 8 pixels.
        labels: class numbers in 0..num_classes - 1, shape (images,).
        probabilities: of the classes, float (images, num_classes), to learn from instead of labels, by which the epoch is chosen.
        num_steps: optimizer steps, in as many equal parts as there would be epochs; None = what `config.epochs` says.
        progress: wraps the iterable of epochs, given a description and their number.

    Raises:
        DataError: images or labels have another form.
    """
    images, labels = _checked(images, labels, num_classes)
    generator = torch.Generator().manual_seed(seed)
    kept, held = hold_out(labels, config.held_out_fraction, generator)
    model = new_classifier(name, _shape(images), num_classes, seed).to(device)
    batches = _batches(len(kept), config.batch_size, generator, shifts=ARCHITECTURES[name].shifts)
    parts = config.epochs or EPOCHS
    total = num_steps or _num_steps(len(kept), config)
    # Last dimension = channels, so that one gather yields each image's own window.
    padded = functional.pad(_normalised(images[kept]), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1).to(device)
    targets = (labels if probabilities is None else probabilities)[kept].to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    curve: list[float] = []
    best: dict[str, Tensor] = {}
    done = 0
    for epoch in progress(range(parts), description, parts):
        model.train()
        while done < total * (epoch + 1) // parts:
            rows, offsets = (part.to(device) for part in next(batches))
            loss = functional.cross_entropy(model(_windows(padded, rows, offsets)), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
        curve.append(float((predict(model, images[held]) == labels[held]).float().mean()))
        if curve[-1] == max(curve):  # of equally good ones the last: its learning rate is the smallest
            best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best)
    epoch = max(range(len(curve)), key=lambda at: (curve[at], at))
    return Trained(model=model.eval(), accuracy=curve[epoch], epoch=epoch + 1, curve=tuple(curve), num_steps=total)


def _num_steps(num_images: int, config: EvaluateConfig) -> int:
    passes = (config.epochs or EPOCHS) * math.ceil(num_images / config.batch_size)
    return passes if config.epochs else max(passes, LEAST_STEPS)


def hold_out(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out: this share of each class, one at least, but never a class's only image.

    Raises:
        DataError: no class has two images.
    """
    held = []
    for number in labels.unique().tolist():
        rows = torch.nonzero(labels == number).flatten()
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    out = torch.zeros(len(labels), dtype=torch.bool)
    out[torch.cat(held)] = True
    if not out.any():
        raise DataError("A classifier needs at least one class of two images, one to train on and one held out.")
    return torch.nonzero(~out).flatten(), torch.nonzero(out).flatten()


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The class of each uint8 image, shape (images,), on the CPU; `model` stays on its device, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        batches = torch.split(images, TEST_BATCH)
        return torch.cat([model(_normalised(batch.to(device))).argmax(dim=1).cpu() for batch in batches])


def test(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> UtilityResult:
    """How `model` does on labelled images; it stays on its device, in evaluation mode.

    Args:
        model: as in `Trained`.
        images: uint8, shape (images, 1 or 3, height, width).
        labels: class numbers in 0..num_classes - 1, shape (images,).

    Raises:
        DataError: images or labels have another form.
    """
    images, labels = _checked(images, labels, num_classes)
    cells = labels * num_classes + predict(model, images)
    counts = torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
    correct, totals = counts.diagonal().tolist(), counts.sum(dim=1).tolist()
    return UtilityResult(
        accuracy=sum(correct) / len(images),
        per_class=tuple(right / total if total else None for right, total in zip(correct, totals, strict=True)),
        confusion=tuple(tuple(row) for row in counts.tolist()),
        num_images=len(images),
    )


test.__test__ = False  # type: ignore[attr-defined]  # pytest would collect the function by its name


def _batches(num: int, size: int, generator: torch.Generator, *, shifts: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, and an offset of 0..2 in each direction for each (1 = none), epoch after epoch in a fresh order."""
    while True:
        order = torch.randperm(num, generator=generator)
        offsets = torch.randint(0, 3, (num, 2), generator=generator) if shifts else torch.ones(num, 2, dtype=torch.long)
        yield from zip(order.split(size), offsets.split(size), strict=True)


def _windows(padded: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Each chosen image, shifted by its offset: channels first, out of channels-last images with a border of 1."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    y = offsets[:, 0, None] + torch.arange(height, device=padded.device)
    x = offsets[:, 1, None] + torch.arange(width, device=padded.device)
    return padded[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return from_pixels(images)


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width


def _checked(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images and labels on the CPU, once their form is what it must be."""
    images, labels = images.cpu(), labels.cpu().long()
    good = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) >= 8
    if not good or not len(images) or labels.shape != (len(images),):
        raise DataError(
            "Classifiers need uint8 images of shape (images, 1 or 3, height, width) from 8 x 8 pixels, and one label each; "
            f"found {images.dtype} of shape {tuple(images.shape)} and {tuple(labels.shape)} labels."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"Some labels lie outside 0..{num_classes - 1}, the class numbers: check the class list.")
    return images, labels
