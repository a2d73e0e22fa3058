"""The classifiers that are trained on synthetic images, by name.

All are small enough for a CPU, take any number of pixels from 8 x 8, and have GroupNorm where others have BatchNorm: it
gives the same result for one image and for many, so that the last batch of an epoch may hold a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "Architecture", "new_classifier"]

GROUPS = 8
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of classifier.

    Attributes:
        about: what it is, in words.
        build: makes it for images of a shape (channels, height, width) and a number of classes.
        shifts: whether training moves images by up to a pixel; linear layers on pixels gain nothing from it.
    """

    about: str
    build: Callable[[Shape, int], nn.Module]
    shifts: bool


def new_classifier(name: str, shape: Shape, num_classes: int, seed: int) -> nn.Module:
    """An untrained classifier; `seed` decides its weights, and the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ARCHITECTURES[name].build(shape, num_classes)


def _cnn(shape: Shape, num_classes: int) -> nn.Module:
    widths = (32, 64, 128)
    return nn.Sequential(
        *_convolution(shape[0], widths[0]),
        *_convolution(widths[0], widths[0]),
        nn.MaxPool2d(2),
        *_convolution(widths[0], widths[1]),
        *_convolution(widths[1], widths[1]),
        nn.MaxPool2d(2),
        *_convolution(widths[1], widths[2]),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * widths[2], num_classes),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, outputs), nn.ReLU()


class _Residual(nn.Module):
    """A residual block with activation before convolution (He et al. 2016, arXiv:1603.05027).

    With `groups`, the middle convolution is a grouped one of half the width between two of 1 x 1 (ResNeXt, Xie et al.
    2017).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int | None) -> None:
        super().__init__()
        inner = outputs if groups is None else outputs // 2
        convolutions = ((3, stride, 1), (3, 1, 1)) if groups is None else ((1, 1, 1), (3, stride, groups), (1, 1, 1))
        channels = (inputs, *[inner] * (len(convolutions) - 1), outputs)
        layers: list[nn.Module] = []
        for (before, after), (kernel, steps, parts) in zip(pairwise(channels), convolutions, strict=True):
            layers += [
                nn.GroupNorm(GROUPS, before),
                nn.ReLU(),
                nn.Conv2d(before, after, kernel, steps, padding=kernel // 2, groups=parts, bias=False),
            ]
        self.body = nn.Sequential(*layers)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(images) + self.shortcut(images)
        return out


def _residual(
    stem: int, widths: tuple[int, ...], blocks: int, groups: int | None = None
) -> Callable[[Shape, int], nn.Module]:
    """Levels of `blocks` residual blocks each, all but the first of half the size of the one before."""

    def build(shape: Shape, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(shape[0], stem, 3, padding=1, bias=False)]
        channels = stem
        for level, width in enumerate(widths):
            for block in range(blocks):
                layers.append(_Residual(channels, width, 2 if level and not block else 1, groups))
                channels = width
        head = [nn.GroupNorm(GROUPS, channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *head, nn.Linear(channels, num_classes))

    return build


def _logistic_regression(shape: Shape, num_classes: int) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


def _mlp(shape: Shape, num_classes: int) -> nn.Module:
    channels, height, width = shape
    hidden = 100  # as scikit-learn's MLPClassifier, which the paper uses
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "cnn": Architecture(about="five 3 x 3 convolutions on three levels", build=_cnn, shifts=True),
    "resnet": Architecture(
        about="ResNet-14: two blocks on each of three levels of 16, 32 and 64 channels",
        build=_residual(16, (16, 32, 64), 2),
        shifts=True,
    ),
    "wrn": Architecture(
        about="WRN-10-2: one block on each of three levels of 32, 64 and 128 channels",
        build=_residual(16, (32, 64, 128), 1),
        shifts=True,
    ),
    "resnext": Architecture(
        about="ResNeXt-11: one block of 4 groups on each of three levels of 48, 96 and 192 channels",
        build=_residual(16, (48, 96, 192), 1, groups=4),
        shifts=True,
    ),
    "logistic-regression": Architecture(about="a linear layer on the pixels", build=_logistic_regression, shifts=False),
    "mlp": Architecture(about="one hidden layer of 100 units on the pixels", build=_mlp, shifts=False),
}
