"""Stage `class_means`: the noisy mean image of each class, which is charged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from privimage.config.run import RunConfig
from privimage.data.pixels import to_pixels
from privimage.data.table import iterate_images
from privimage.errors import ConfigError, Uncharged
from privimage.generators.diffusion.kind import settings_of
from privimage.payloads import ClassMeanImages, Query, guarantee_of
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums
from privimage.reports.pictures import sample_grid
from privimage.semantics.class_means import Differences, class_sizes, largest_norm, mean_image
from privimage.store.artifacts import Artifact
from privimage.store.weights import save_weights

__all__ = ["open_class_means", "rehearse", "run"]

READ_AT_ONCE = 256  # images; in double precision they are large


def run(context: StageContext) -> Outcome:
    """Writes class_means.safetensors (noisy means, public mean image), class_means.json (the mechanism) and class_means.png.

    Exact sums are never written. What sums are divided by is public, or of the noisy votes.
    """
    if context.paid is None or not isinstance(context.paid.mechanism, ClassSums) or context.facts is None:
        raise Uncharged("The class mean images were not charged.")
    mechanism, random, names = context.paid.mechanism, context.paid.random, context.facts.class_names
    reference, max_norm = _bound(context.config, context.inputs["public"])
    query = Query.read(context.inputs["query"]) if "query" in context.inputs else None
    sizes = class_sizes(
        mechanism.num_classes,
        mechanism.num_images,
        np.asarray(query.noisy_histogram) if query else None,
        query.num_votes if query else 1,
    )
    private_images, private_labels = context.private_images("train")
    sums = noisy_class_sums(
        Differences(images=private_images, reference=reference, max_norm=max_norm),
        private_labels,
        mechanism,
        insecure_random=random if isinstance(random, InsecureRandomForTests) else None,
    )
    means = torch.from_numpy((sums / sizes[:, None] * max_norm).reshape(-1, *reference.shape) + reference).float()
    save_weights(
        {"means": means, "reference": torch.from_numpy(reference).float()}, context.folder / "class_means.safetensors"
    )
    picture = sample_grid(to_pixels(means).numpy(), list(range(len(names))), names)
    (context.folder / "class_means.png").write_bytes(picture)
    ClassMeanImages(
        # One with reproducible votes has sizes without a guarantee.
        guarantee=guarantee_of(random.guarantee, query is None or query.is_guaranteed),
        noise_multiplier=mechanism.noise_multiplier,
        noise_stddev=mechanism.noise_stddev,
        max_norm=max_norm,
        class_names=names,
        class_sizes=sizes.tolist(),
        class_sizes_are="of the noisy votes" if query else "taken to be equal",
        noise_in_means=(mechanism.noise_stddev * max_norm / sizes).tolist(),
    ).write(context.folder)
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "max_norm": max_norm})


def rehearse(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Public images bound no norm? It is found before the charge."""
    _bound(config, inputs["public"])


def open_class_means(artifact: Artifact) -> torch.Tensor:
    """The noisy means, float (classes, C, H, W), about in [-1, 1]."""
    return load_file(artifact.local("class_means.safetensors"))["means"]


def _bound(config: RunConfig, public: Artifact) -> tuple[NDArray[np.float64], float]:
    """The mean of public images, and the norm that differences from it are cut to."""
    files = public.files("images-")
    reference = mean_image(_batches(files))
    class_means = settings_of(config.generator).class_means
    if class_means is None:
        raise ConfigError("The configuration has no class mean images: give generator.class_means.")
    return reference, class_means.max_norm or largest_norm(_batches(files), reference)


def _batches(files: list[Path]) -> Iterator[NDArray[np.uint8]]:
    return (images for images, _, _ in iterate_images(files, READ_AT_ONCE))
