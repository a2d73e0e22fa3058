"""Stage `validate`: which classifier is best on sensitive validation images, by noisy counts that are charged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from privimage.config.run import RunConfig
from privimage.errors import Uncharged
from privimage.evaluation.utility import check_shape, predict
from privimage.evaluation.validation import correct_counts
from privimage.machine.device import choose_device
from privimage.payloads import Validation, guarantee_of
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.counts import add_noise
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ValidationCount
from privimage.stages.downstream import open_downstream
from privimage.store.artifacts import Artifact

__all__ = ["rehearse", "run"]


def run(context: StageContext) -> Outcome:
    """Writes validation.json: noisy accuracies, what is best by them, and the mechanism. Exact counts are never written."""
    if context.paid is None or not isinstance(context.paid.mechanism, ValidationCount):
        raise Uncharged("The validation was not charged.")
    mechanism, random = context.paid.mechanism, context.paid.random
    downstream = open_downstream(context.inputs["downstream"], choose_device(context.config.performance.device))
    private_images, private_labels = context.private_images("validation")
    images, labels = torch.from_numpy(private_images), torch.from_numpy(private_labels)
    check_shape(images, downstream.shape)
    hits = {
        name: np.stack([(predict(model, images) == labels).numpy() for model in models])
        for name, models in downstream.models.items()
    }
    noisy = add_noise(
        correct_counts(list(hits.values()), mechanism),
        mechanism,
        insecure_random=random if isinstance(random, InsecureRandomForTests) else None,
    )
    # Both divisors are public.
    accuracies = dict(zip(hits, (noisy / mechanism.num_images / mechanism.votes_each).tolist(), strict=True))
    chosen = max(accuracies, key=lambda name: accuracies[name])
    Validation(
        guarantee=guarantee_of(random.guarantee),
        noise_multiplier=mechanism.noise_multiplier,
        noise_stddev=mechanism.noise_stddev / mechanism.num_images / mechanism.votes_each,
        num_images=mechanism.num_images,
        noisy_accuracies=accuracies,
        chosen=chosen,
    ).write(context.folder)
    return Outcome(metrics={"chosen": chosen, "noise_multiplier": mechanism.noise_multiplier})


def rehearse(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    """Every classifier on made-up images, to find before the charge what could otherwise fail after it."""
    downstream = open_downstream(inputs["downstream"], choose_device(config.performance.device))
    for models in downstream.models.values():
        for model in models:
            predict(model, torch.zeros(1, *downstream.shape, dtype=torch.uint8))
