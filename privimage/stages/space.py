"""Stage `space`: where class means of features are released. Public: of the sensitive images it knows how many there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from privimage.data.facts import public_facts
from privimage.errors import DataError, Uncharged
from privimage.payloads import SpaceAbout
from privimage.pipeline.preflight import planned_feature_means
from privimage.pipeline.stage import Outcome, StageContext
from privimage.semantics.discriminant import overconfidence
from privimage.semantics.index import features_in
from privimage.semantics.space import (
    FeatureSpace,
    FeatureStatistics,
    dimensions_worth_their_noise,
    fit_space,
)
from privimage.store.artifacts import Artifact

__all__ = ["features_of_index", "open_space", "run"]

SAMPLE = 100_000
"""Public images that the space is fitted to, of every so many one: more would not tell it better, and take hours where there are
millions."""


def run(context: StageContext) -> Outcome:
    """Writes space.safetensors (the directions that are worth their noise) and space.json."""
    if context.facts is None:
        raise Uncharged("The space of feature means depends on how many sensitive images there are.")
    config, facts = context.config, context.facts
    num_categories = len(public_facts(context.inputs["public"]).class_names)
    mechanism = planned_feature_means(config, facts, num_categories)
    if mechanism is None:
        raise Uncharged("The configuration releases no feature means.")
    noise = mechanism.noise_stddev / (facts.num_train / len(facts.class_names))
    statistics: FeatureStatistics | None = None
    for features, categories in _sampled(context.inputs["index"]):
        statistics = statistics or FeatureStatistics(num_categories, features.shape[1])
        statistics.add(features, categories)
    if statistics is None:
        raise DataError("The index has no images: give a public set that has some.")
    whole = fit_space(statistics)
    space = whole.first(dimensions_worth_their_noise(whole, noise_in_means=noise))
    sampled = [(space.vectors(features), categories) for features, categories in _sampled(context.inputs["index"])]
    sample, their_categories = (np.concatenate(part) for part in zip(*sampled, strict=True))
    about = SpaceAbout(
        num_features=len(space.mean),
        dimensions=space.dimensions,
        noise_in_means=noise,
        overconfidence=overconfidence(
            sample, their_categories, num_classes=len(facts.class_names), noise_in_means=noise
        ),
    )
    space.save(context.folder / SpaceAbout.DIRECTIONS)
    about.write(context.folder)
    return Outcome(metrics={"dimensions": space.dimensions, "overconfidence": about.overconfidence})


def features_of_index(index: Artifact) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features and categories of the public images, a batch at a time, in the order of the index."""
    for file in index.files("predictions-"):
        yield from features_in(file)


def open_space(artifact: Artifact) -> FeatureSpace:
    """The space that the stage wrote."""
    return FeatureSpace.load(artifact.local(SpaceAbout.DIRECTIONS))


def _sampled(index: Artifact) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Those of every so-manieth image, so that there are `SAMPLE` of them at most."""
    every, at = -(-int(str(index.manifest.metrics["num_images"])) // SAMPLE), 0
    for features, categories in features_of_index(index):
        rows = slice(-at % every, None, every)
        if len(categories[rows]):
            yield features[rows], categories[rows]
        at += len(categories)
