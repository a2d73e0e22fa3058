"""Small image sets on disk, for the tests of `privimage.data`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from privimage.config.images import ImageConfig


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number: int, size: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)


@pytest.fixture
def gray8() -> ImageConfig:
    return ImageConfig(resolution=8, channels=1)


@pytest.fixture
def make_folder() -> Callable[..., Path]:
    """Writes `per_class` distinct gray PNGs into a folder for each class name."""

    def write(root: Path, class_names: tuple[str, ...] = ("cat", "dog"), per_class: int = 40, first: int = 0) -> Path:
        for label, name in enumerate(class_names):
            (root / name).mkdir(parents=True)
            for index in range(per_class):
                (root / name / f"{index:03d}.png").write_bytes(png(picture(first + label * 10_000 + index)))
        return root

    return write


@pytest.fixture
def as_png() -> Callable[[NDArray[np.uint8]], bytes]:
    return png


@pytest.fixture
def make_picture() -> Callable[[int], NDArray[np.uint8]]:
    return picture
