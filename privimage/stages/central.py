"""Stage `central`: the noisy mean image of each class, which is charged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from privimage.config import RunConfig
from privimage.data.table import iterate_images
from privimage.errors import Uncharged
from privimage.generators.pixels import to_pixels
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums
from privimage.release.pictures import sample_grid
from privimage.semantics.central import Differences, class_sizes, largest_norm, mean_image
from privimage.stages.models import save_weights
from privimage.store.artifacts import Artifact

__all__ = ["open_central", "rehearse", "run"]

READ_AT_ONCE = 256  # images; in double precision they are large


def run(context: StageContext) -> Outcome:
    """Writes central.safetensors (noisy means, public mean image), central.json (the mechanism) and central.png.

    Exact sums are never written. What sums are divided by is public, or of the noisy votes.
    """
    if context.paid is None or not isinstance(context.paid.mechanism, ClassSums) or context.facts is None:
        raise Uncharged("The central images were not charged.")
    mechanism, random, names = context.paid.mechanism, context.paid.random, context.facts.class_names
    reference, max_norm = _bound(context.config, context.inputs["public"])
    query = context.inputs["query"].read_json("query.json") if "query" in context.inputs else None
    sizes = class_sizes(
        mechanism.num_classes,
        mechanism.num_images,
        np.asarray(query["noisy_histogram"]) if query else None,
        query["num_votes"] if query else 1,
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
        {"means": means, "reference": torch.from_numpy(reference).float()}, context.folder / "central.safetensors"
    )
    picture = sample_grid(to_pixels(means).numpy(), list(range(len(names))), names)
    (context.folder / "central.png").write_bytes(picture)
    released = {
        # One with reproducible votes has sizes without a guarantee.
        "guarantee": "differential privacy" if _is_guaranteed(random.guarantee, query) else "none",
        "noise_multiplier": mechanism.noise_multiplier,
        "noise_stddev": mechanism.noise_stddev,
        "max_norm": max_norm,
        "class_names": list(names),
        "class_sizes": sizes.tolist(),
        "class_sizes_are": "of the noisy votes" if query else "taken to be equal",
        "noise_in_means": (mechanism.noise_stddev * max_norm / sizes).tolist(),
    }
    (context.folder / "central.json").write_text(json.dumps(released))
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "max_norm": max_norm})


def rehearse(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Public images bound no norm? It is found before the charge."""
    _bound(config, inputs["public"])


def open_central(artifact: Artifact) -> torch.Tensor:
    """The noisy means, float (classes, C, H, W), about in [-1, 1]."""
    return load_file(artifact.local("central.safetensors"))["means"]


def _bound(config: RunConfig, public: Artifact) -> tuple[NDArray[np.float64], float]:
    """The mean of public images, and the norm that differences from it are cut to."""
    files = public.files("images-")
    reference = mean_image(_batches(files))
    return reference, config.central.max_norm or largest_norm(_batches(files), reference)


def _batches(files: list[Path]) -> Iterator[NDArray[np.uint8]]:
    return (images for images, _, _ in iterate_images(files, READ_AT_ONCE))


def _is_guaranteed(own: bool, query: dict[str, object] | None) -> bool:
    return own and (query is None or query["guarantee"] == "differential privacy")
