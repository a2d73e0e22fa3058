"""Images of stage `synthesize` that are chosen by released feature means, among drawn ones and, if asked for, public ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from privimage.data.facts import public_facts
from privimage.data.table import PUBLIC, TableWriter, iterate_images, read_images
from privimage.generators.sampling.blends import blends
from privimage.generators.sampling.choosing import choose_by_means
from privimage.generators.training.gradients import read_selection
from privimage.machine.device import choose_device, choose_precision
from privimage.payloads import GeneratorAbout, finished
from privimage.pipeline.stage import StageContext
from privimage.semantics.backbone import features_of, open_backbone
from privimage.semantics.selection import rows_of_batches
from privimage.stages.feature_means import open_discriminant
from privimage.stages.space import features_of_index

__all__ = ["ChosenByMeans", "write_chosen"]

BATCH = 1024
Looks = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ChosenByMeans:
    """How it went.

    Attributes:
        as_asked: share of the drawn candidates whose likeliest class is the one that they were drawn as.
        num_public, num_mixed: how many of the released images are public ones, unchanged, or blends; None where they may not be.
    """

    num_candidates: int
    as_asked: float
    num_public: int | None
    num_mixed: int | None


def write_chosen(context: StageContext, drawn: Sequence[Path], labels: NDArray[np.int64]) -> ChosenByMeans:
    """Write images-*.parquet, an image for each of the `labels`, with probabilities of all classes beside it.

    The class of an image is the likeliest one, whatever it was drawn as.

    Args:
        drawn: files of an image table; which class each was drawn as is its label.
    """
    about = GeneratorAbout.read(finished(context.inputs))
    from_public = context.config.synthesize.from_public
    discriminant = open_discriminant(context.inputs["feature_means"], context.inputs["space"])
    look = _looks(context)
    features, asked = _seen(context, drawn, look)
    num_drawn = len(asked)
    others: NDArray[np.uint8] | None = None
    if from_public == "unchanged":
        others, more = _public(context)
        features = np.concatenate([features, more])
    elif from_public == "blended":
        others = _blended(context, len(about.class_names), num_drawn)
        features = np.concatenate([features, look(others)])
    vectors = discriminant.space.vectors(features)
    probabilities = discriminant.of_vectors(vectors)
    wanted = np.bincount(labels, minlength=len(about.class_names)).tolist()
    chosen = choose_by_means(vectors, probabilities, discriminant.means, wanted)
    rows = np.empty(len(labels), dtype=np.int64)
    for label, of_class in enumerate(chosen):
        rows[labels == label] = of_class
    is_other = rows >= num_drawn
    images = np.empty((len(rows), *about.shape), dtype=np.uint8)
    images[~is_other], _ = read_images(drawn, rows[~is_other], spill=context.folder)
    if others is not None:
        images[is_other] = others[rows[is_other] - num_drawn]
    with TableWriter(context.folder, "images", about.class_names, about.image, with_probabilities=True) as table:
        for pixels, label, row, other in zip(images, labels.tolist(), rows, is_other, strict=True):
            path = PUBLIC if other and from_public == "unchanged" else None
            table.add(pixels, label, path, probabilities[row])
    count = int(is_other.sum())
    return ChosenByMeans(
        num_candidates=len(vectors),
        as_asked=float((probabilities[:num_drawn].argmax(1) == asked).mean()),
        num_public=count if from_public == "unchanged" else None,
        num_mixed=count if from_public == "blended" else None,
    )


def _seen(context: StageContext, files: Sequence[Path], look: Looks) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of drawn images, and the classes that they were drawn as."""
    found, asked = [], []
    for images, labels, _ in context.progress.track(iterate_images(files, BATCH), "choose (batches)", None):
        found.append(look(images))
        asked.append(labels)
    return np.concatenate(found), np.concatenate(asked)


def _looks(context: StageContext) -> Looks:
    """What the backbone sees in images."""
    device = choose_device(context.config.performance.device)
    backbone = open_backbone(context.inputs["classifier"], device)
    precision = choose_precision(context.config.performance, device)
    return lambda images: features_of(backbone, torch.from_numpy(images), device, precision)


def _public(context: StageContext) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The selected public images, and their features, as the index has them."""
    images, _, _ = read_selection(context, public_facts(context.inputs["public"]).num_images)
    ids = pq.read_table(context.inputs["select"].local("selected.parquet"), columns=["id"])["id"].to_numpy()
    return images, rows_of_batches((features for features, _ in features_of_index(context.inputs["index"])), ids)


def _blended(context: StageContext, num_classes: int, count: int) -> NDArray[np.uint8]:
    """Blends of two selected public images of a class each, as many of each class."""
    images, labels, probabilities = read_selection(context, public_facts(context.inputs["public"]).num_images)
    if probabilities is None:
        probabilities = np.eye(num_classes, dtype=np.float32)[labels]
    return blends(images, probabilities, count, seed=context.config.synthesize.seed)
