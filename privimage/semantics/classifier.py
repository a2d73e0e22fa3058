"""The semantic classifier: a compact residual network (He et al. 2016) trained on the public images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from privimage.config.classifier import ClassifierConfig
from privimage.data.pixels import from_pixels
from privimage.errors import DataError, TrainingError
from privimage.payloads import ClassifierAbout
from privimage.privacy.gradients import Precision, autocast
from privimage.semantics.backbone import Backbone
from privimage.store.artifacts import Artifact

__all__ = [
    "ResNet",
    "ResidualBlock",
    "TrainedClassifier",
    "new_classifier",
    "num_training_steps",
    "open_classifier",
    "predict",
    "train_classifier",
]


_CELLS = 4


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or the 1-3-1 bottleneck; batch norm is fine here, the images are public."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        inner = channels_out // 4 if bottleneck else channels_out
        sizes = (
            [(channels_in, inner, 1), (inner, inner, 3), (inner, channels_out, 1)]
            if bottleneck
            else [
                (channels_in, inner, 3),
                (inner, channels_out, 3),
            ]
        )
        layers: list[nn.Module] = []
        for number, (wide_in, wide_out, kernel) in enumerate(sizes):
            # The stride sits on the (first) 3x3 convolution.
            step = stride if number == (1 if bottleneck else 0) else 1
            layers += [
                nn.Conv2d(wide_in, wide_out, kernel, step, kernel // 2, bias=False),
                nn.BatchNorm2d(wide_out),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers[:-1])
        same = channels_in == channels_out and stride == 1
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


class ResNet(Backbone):
    """Images in [-1, 1], (batch, C, H, W) => embeddings (batch, D) by `embed`, logits (batch, categories) by calling.

    `describe` gives `num_features` numbers for each image.
    """

    def __init__(self, config: ClassifierConfig, *, channels: int, num_categories: int) -> None:
        super().__init__()
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        expansion = 4 if config.bottleneck else 1
        for level, blocks in enumerate(config.blocks):
            target = config.base_channels * 2**level * expansion
            for block in range(blocks):
                stride = 2 if level > 0 and block == 0 else 1
                layers.append(ResidualBlock(width, target, stride, config.bottleneck))
                width = target
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_categories)
        self.embedding_size = width
        self.name = "public-classifier"
        self._mirrors = config.horizontal_flip
        self.num_features = _CELLS**2 * sum(
            blocks * config.base_channels * 2**level * expansion for level, blocks in enumerate(config.blocks)
        )

    def embed(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.features(x).mean(dim=(2, 3))
        return embedding

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.embed(x))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Of the categories, (batch, categories), from embeddings (batch, D)."""
        found: Tensor = self.head(embeddings)
        return found

    def activations(self, x: Tensor, cells: int = 2) -> Tensor:
        """What each block makes of the images, averaged over each of `cells` x `cells` parts of them: (batch, cells^2 x channels of
        all blocks)."""
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, ResidualBlock):
                found.append(functional.adaptive_avg_pool2d(x, cells).flatten(1))
        return torch.cat(found, dim=1)

    def describe(self, images: Tensor) -> Tensor:
        """Features for class means, (batch, num_features): square roots of activations in 4 x 4 parts; where images were mirrored in
        training, of their mean for the image and its mirror image.

        Measured (Tiny ImageNet -> CIFAR-10, 16 x 16, 10,000 images, epsilon 1): 55.0 % of real test images are told by the noisy
        means; 49.5 % with plain activations in 2 x 2 parts. A root keeps the few large activations from drowning all others.
        """
        seen = self.activations(images, _CELLS)
        if self._mirrors:
            seen = (seen + self.activations(images.flip(3), _CELLS)) / 2
        return seen.clamp(min=0).sqrt()


@dataclass(frozen=True, kw_only=True)
class TrainedClassifier:
    """The network, its accuracy on held-out public images, and its training curves (step, value)."""

    model: ResNet
    validation_accuracy: float
    loss_curve: list[tuple[int, float]]
    accuracy_curve: list[tuple[int, float]]


def new_classifier(config: ClassifierConfig, *, channels: int, num_categories: int) -> ResNet:
    """A network initialised from the configured seed, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ResNet(config, channels=channels, num_categories=num_categories)


def num_training_steps(num_images: int, config: ClassifierConfig) -> int:
    """Optimizer steps that `train_classifier` takes on so many public images."""
    return (num_images - _num_held_out(num_images, config)) // config.batch_size * config.epochs


def _num_held_out(num_images: int, config: ClassifierConfig) -> int:
    return max(1, int(num_images * config.validation_fraction))


def train_classifier(
    public_images: Tensor,
    categories: Tensor,
    num_categories: int,
    config: ClassifierConfig,
    *,
    device: torch.device,
    precision: Precision = "float32",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainedClassifier:
    """Train on uint8 NCHW `public_images` by SGD with momentum, cosine schedule and softmax cross-entropy.

    A share of the images, the same for a given seed, is held out; accuracy on it is reported, no choice depends on it.
    `on_step(step, loss)` is called after each optimizer step, with its number from 1. `public_images` may be mapped
    from a file: a batch at a time is read.

    Raises:
        DataError: too few images. TrainingError: a loss, or a weight after the last step, is not finite.
    """
    model = new_classifier(config, channels=public_images.shape[1], num_categories=num_categories).to(device)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(public_images), generator=generator)
    held_out = _num_held_out(len(order), config)
    validation, training = order[:held_out], order[held_out:]
    if len(training) < config.batch_size:
        raise DataError(
            f"The public set has {len(training)} training images, fewer than classifier.batch_size = {config.batch_size}."
        )
    total = num_training_steps(len(public_images), config)
    per_epoch = total // config.epochs
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )
    losses: list[tuple[int, float]] = []
    accuracies: list[tuple[int, float]] = []
    batches = _batches(public_images, categories, training, config, generator)
    batch = next(batches)
    for step in range(total):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
        loss = _loss(model, batch, device, precision)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Gathered here, while a GPU still computes: it is waited for when the loss is asked for.
        batch = next(batches, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(step)
        optimizer.step()
        if step % 20 == 0 or step + 1 == total:
            losses.append((step, value))
        on_step(step + 1, value)
        if (step + 1) % per_epoch == 0:
            accuracies.append((step + 1, _accuracy(model, public_images, categories, validation, device)))
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise _diverged(total - 1)
    return TrainedClassifier(
        model=model.eval(), validation_accuracy=accuracies[-1][1], loss_curve=losses, accuracy_curve=accuracies
    )


def _loss(model: ResNet, batch: _Batch, device: torch.device, precision: Precision) -> Tensor:
    with autocast(device, precision):
        logits = model(_pixels(batch, device))
    return functional.cross_entropy(logits.float(), batch.categories.to(device))


@torch.no_grad()
def predict(model: ResNet, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (batch, categories) and embeddings (batch, D) of uint8 NCHW images, on the CPU, float32."""
    model.eval()
    embeddings = model.embed(from_pixels(images.to(device)))
    return model.logits(embeddings).float().cpu(), embeddings.float().cpu()


def _accuracy(model: ResNet, images: Tensor, categories: Tensor, rows: Tensor, device: torch.device) -> float:
    predicted = [predict(model, images[some], device)[0].argmax(1) for some in rows.split(1024)]
    return float((torch.cat(predicted) == categories[rows]).float().mean())


def _diverged(step: int) -> TrainingError:
    return TrainingError(f"The classifier diverged at step {step}: lower classifier.learning_rate.")


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """One step's uint8 images and categories, and what was drawn for them: an affine map each, which are mirrored."""

    images: Tensor
    categories: Tensor
    maps: Tensor | None
    mirrored: Tensor | None


def _batches(
    images: Tensor, categories: Tensor, training: Tensor, config: ClassifierConfig, generator: torch.Generator
) -> Iterator[_Batch]:
    for _ in range(config.epochs):
        shuffled = training[torch.randperm(len(training), generator=generator)]
        for number in range(len(training) // config.batch_size):
            rows = shuffled[number * config.batch_size : (number + 1) * config.batch_size]
            yield _Batch(
                images=images[rows],
                categories=categories[rows],
                maps=_random_maps(len(rows), generator) if config.augment else None,
                mirrored=torch.rand(len(rows), generator=generator) < 0.5 if config.horizontal_flip else None,
            )


def _random_maps(count: int, generator: torch.Generator) -> Tensor:
    """Shift by up to an eighth of the size, rotate by up to 10 degrees, scale by up to 10 %: (count, 2, 3)."""
    draws = 2 * torch.rand(count, 4, generator=generator) - 1
    angle, scale = draws[:, 0] * math.radians(10), 1 + 0.1 * draws[:, 1]
    return torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), draws[:, 2] / 4], dim=1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), draws[:, 3] / 4], dim=1),
        ],
        dim=1,
    )


def _pixels(batch: _Batch, device: torch.device) -> Tensor:
    """The batch as the network sees it: in [-1, 1], moved and mirrored, on the device."""
    images = from_pixels(batch.images.to(device))
    if batch.maps is not None:
        grid = functional.affine_grid(batch.maps.to(device), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if batch.mirrored is not None:
        images = torch.where(batch.mirrored.to(device)[:, None, None, None], images.flip(3), images)
    return images


def open_classifier(artifact: Artifact, device: torch.device) -> tuple[ResNet, Sequence[str]]:
    """The classifier of stage `classifier`, in evaluation mode, and its category names."""
    about = ClassifierAbout.read(artifact)
    config = ClassifierConfig.model_validate(about.config)
    model = new_classifier(config, channels=about.channels, num_categories=len(about.class_names))
    model.load_state_dict(load_file(artifact.local("classifier.safetensors")))
    return model.to(device).eval(), about.class_names
