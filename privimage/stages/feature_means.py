"""Stage `feature_means`: noisy class means of what a public network sees in the sensitive images, which is charged."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from privimage.errors import Uncharged
from privimage.machine.device import choose_device, choose_precision
from privimage.payloads import FeatureMeans, Query, SpaceAbout, guarantee_of
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums
from privimage.semantics.backbone import features_of, open_backbone
from privimage.semantics.discriminant import Discriminant, class_means_of, summed_vectors, temperature_of
from privimage.stages.space import open_space
from privimage.store.artifacts import Artifact

__all__ = ["open_discriminant", "run"]

READ_AT_ONCE = 1024


def run(context: StageContext) -> Outcome:
    """Writes feature_means.safetensors (noisy means) and feature_means.json (noisy sizes, the mechanism).

    Exact sums are never written.
    """
    if context.paid is None or not isinstance(context.paid.mechanism, ClassSums) or context.facts is None:
        raise Uncharged("The feature means were not charged.")
    mechanism, random = context.paid.mechanism, context.paid.random
    device = choose_device(context.config.performance.device)
    backbone = open_backbone(context.inputs["classifier"], device)
    precision = choose_precision(context.config.performance, device)
    space = open_space(context.inputs["space"])
    private_images, private_labels = context.private_images("train")
    starts = context.progress.track(range(0, len(private_images), READ_AT_ONCE), "feature means (batches)")
    vectors = np.concatenate(
        [
            summed_vectors(
                space.vectors(
                    features_of(backbone, torch.from_numpy(private_images[at : at + READ_AT_ONCE]), device, precision)
                )
            )
            for at in starts
        ]
    )
    sums = noisy_class_sums(
        vectors,
        private_labels,
        mechanism,
        insecure_random=random if isinstance(random, InsecureRandomForTests) else None,
    )
    means, sizes = class_means_of(sums, mechanism.num_images)
    save_file({"means": np.ascontiguousarray(means)}, context.folder / FeatureMeans.MEANS)
    before = [Query.read(context.inputs["query"])] if "query" in context.inputs else []
    FeatureMeans(
        guarantee=guarantee_of(random.guarantee, *(query.is_guaranteed for query in before)),
        noise_multiplier=mechanism.noise_multiplier,
        noise_stddev=mechanism.noise_stddev,
        class_names=context.facts.class_names,
        dimensions=space.dimensions,
        class_sizes=tuple(sizes.tolist()),
        noise_in_means=tuple((mechanism.noise_stddev / sizes).tolist()),
        temperature=temperature_of(means, SpaceAbout.read(context.inputs["space"]).overconfidence),
    ).write(context.folder)
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "dimensions": space.dimensions})


def open_discriminant(means: Artifact, space: Artifact) -> Discriminant:
    """What the released means tell of public and synthetic images."""
    found: NDArray[np.float32] = load_file(means.local(FeatureMeans.MEANS))["means"]
    return Discriminant(space=open_space(space), means=found, temperature=FeatureMeans.read(means).temperature)
