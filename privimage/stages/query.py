"""Stage `query`: the noisy semantic query, which is charged."""

from __future__ import annotations

import numpy as np
import torch

from privimage.errors import Uncharged
from privimage.machine.device import choose_device
from privimage.payloads import Query, guarantee_of
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.counts import add_noise
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import HistogramQuery
from privimage.semantics.classifier import open_classifier, predict
from privimage.semantics.query import top_votes, vote_histogram

__all__ = ["run"]

QUERY_BATCH = 1024


def run(context: StageContext) -> Outcome:
    """Writes query.json: the noisy histogram and the mechanism that made it. The exact counts are never written."""
    if context.paid is None or not isinstance(context.paid.mechanism, HistogramQuery) or context.facts is None:
        raise Uncharged("The query was not charged.")
    mechanism, random = context.paid.mechanism, context.paid.random
    device = choose_device(context.config.performance.device)
    model, names = open_classifier(context.inputs["classifier"], device)
    private_images, private_labels = context.private_images("train")
    votes = np.concatenate(
        [
            top_votes(
                predict(model, torch.from_numpy(private_images[at : at + QUERY_BATCH]), device)[0], mechanism.num_votes
            )
            for at in context.progress.track(range(0, len(private_images), QUERY_BATCH), "query (batches)")
        ]
    )
    noisy = add_noise(
        vote_histogram(votes, private_labels, mechanism),
        mechanism,
        insecure_random=random if isinstance(random, InsecureRandomForTests) else None,
    )
    Query(
        guarantee=guarantee_of(random.guarantee),
        num_votes=mechanism.num_votes,
        noise_multiplier=mechanism.noise_multiplier,
        noise_stddev=mechanism.noise_stddev,
        class_names=context.facts.class_names,
        category_names=tuple(names),
        noisy_histogram=noisy.tolist(),
    ).write(context.folder)
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "noise_stddev": mechanism.noise_stddev})
