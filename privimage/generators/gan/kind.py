"""The code of the GAN kind (`methods.generators.gan`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.data.pixels import from_pixels
from privimage.generators.gan.gan import Gan, new_gan
from privimage.generators.interface import ImageSource
from privimage.generators.opening import load_weights
from privimage.generators.training.gradients import rehearse_finetune, run_finetune, run_pretrain
from privimage.methods.generator import GeneratorKind
from privimage.methods.generators.gan import GanConfig
from privimage.payloads import GeneratorAbout
from privimage.store.artifacts import Artifact

__all__ = [
    "losses_of_images",
    "new_generator",
    "open_generator",
    "rehearse_finetune",
    "run_finetune",
    "run_pretrain",
]


def new_generator(network: Mapping[str, Any], *, channels: int, resolution: int, num_classes: int, seed: int) -> Gan:
    config = GanConfig.model_validate(network)
    return new_gan(config, channels=channels, resolution=resolution, num_classes=num_classes, seed=seed)


def open_generator(artifact: Artifact, settings: GeneratorKind | None, device: torch.device) -> Gan:
    about = GeneratorAbout.read(artifact)
    size = {"channels": about.channels, "resolution": about.resolution, "num_classes": len(about.class_names)}
    gan = new_generator(about.network, **size, seed=0)
    load_weights(gan, artifact)
    return gan.to(device).eval()


@torch.no_grad()
def losses_of_images(
    generator: ImageSource,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    settings: GeneratorKind,
    *,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float64]:
    """What the discriminator scores each image, with the opposite sign.

    As in LOGAN (Hayes et al. 2019): a discriminator that has seen an image takes it for real.
    """
    if not isinstance(generator, Gan):
        raise TypeError(f"A {type(generator).__name__} is no GAN.")
    found = [
        -generator.discriminator(
            from_pixels(torch.from_numpy(images[start : start + batch_size])).to(device),
            torch.from_numpy(labels[start : start + batch_size]).to(device),
        )
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(found).double().cpu().numpy()
