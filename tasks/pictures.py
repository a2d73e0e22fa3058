"""Pictures for Prefect's pages, as data URLs: the browser that shows them cannot reach the store."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from privimage.config.run import RunConfig
from privimage.store.artifacts import Artifact

__all__ = ["curve_url", "grid_url", "picture_url"]

IMAGES_PER_CLASS = 6
CLASSES = 20


def picture_url(data: bytes, kind: str = "image/png") -> str:
    """A picture as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def curve_url(points: Sequence[tuple[int, float]], title: str) -> str:
    """The loss curve of public training."""
    from privimage.reports.pictures import curve_svg

    svg = curve_svg({"loss": points}, "step", "loss", title)
    # Inside <img> the page's colours are unknown: dark text on white reads everywhere.
    return picture_url(svg.replace("<svg ", '<svg style="background:#fff;color:#222" ', 1).encode(), "image/svg+xml")


def grid_url(generator: Artifact, config: RunConfig) -> str:
    """A few images of a generator that was trained so far, by class, with the first seeds of the configuration.

    They are post-processing of its published weights, and cost nothing.
    """
    import torch

    from privimage.generators.opening import open_generator
    from privimage.generators.sampling.sampler import synthesize_images
    from privimage.machine.device import choose_device
    from privimage.reports.pictures import sample_grid

    device, settings = choose_device(config.performance.device), config.generator.for_a_look()
    network, about = open_generator(generator, device, settings)
    names = about.class_names[:CLASSES]
    labels = torch.arange(len(names)).repeat(IMAGES_PER_CLASS)
    seeds = torch.arange(len(labels)) + (config.synthesize.seed << 32)
    images = synthesize_images(network, labels, seeds, about.shape)
    return picture_url(sample_grid(images, labels, names, per_class=IMAGES_PER_CLASS))
