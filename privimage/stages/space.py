"""Stage `space`: where class means of features are released. Public: of the sensitive images it knows how many there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from privimage.data.facts import public_facts
from privimage.errors import Uncharged
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

SAMPLE = 50_000
"""Public images by which probabilities are made honest: more would not tell it better."""


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
    batches = features_of_index(context.inputs["index"])
    features, categories = next(batches)
    statistics = FeatureStatistics(num_categories, features.shape[1])
    statistics.add(features, categories)
    for features, categories in context.progress.track(batches, "space (batches)", None):
        statistics.add(features, categories)
    whole = fit_space(statistics)
    space = whole.first(dimensions_worth_their_noise(whole, noise_in_means=noise))
    sample, their_categories = _sample(context.inputs["index"], int(statistics.counts.sum()), space)
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


def _sample(index: Artifact, num_images: int, space: FeatureSpace) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors and categories of every so-manieth public image."""
    every, at = max(1, num_images // SAMPLE), 0
    vectors, labels = [], []
    for features, categories in features_of_index(index):
        rows = slice(-at % every, None, every)
        vectors.append(space.vectors(features[rows]))
        labels.append(categories[rows])
        at += len(categories)
    return np.concatenate(vectors), np.concatenate(labels)
