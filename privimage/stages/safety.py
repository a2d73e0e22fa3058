"""What `evaluate` says about safety: memorization and membership inference. All of it is internal.

A sealed stage releases nothing, so it may see training images without a charge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.evaluation.features import FeatureExtractor
from privimage.evaluation.membership import FALSE_POSITIVES, Membership, Share, membership
from privimage.evaluation.memorization import Memorization, memorization
from privimage.generators.interface import code_of
from privimage.generators.opening import open_generator
from privimage.machine.device import rows_without_gradients
from privimage.pipeline.stage import StageContext
from privimage.privacy.audit import CONFIDENCE
from privimage.reports.figures import Figure
from privimage.reports.pictures import sample_grid

__all__ = ["Safety", "measure_safety"]

# At most so many synthetic images are compared, and training and test images attacked: it bounds the time.
MOST_COMPARED = 10_000
MOST_ATTACKED = 2_000
SEED = 0  # of which ones, where there are more

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Safety:
    """Numbers for metrics.json, figures for the internal report, and pairs that look most alike, side by side, as PNG."""

    metrics: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    near_copies_png: bytes | None = None


def measure_safety(
    context: StageContext,
    synthetic: NDArray[np.uint8],
    test: Images,
    extractors: Sequence[FeatureExtractor],
    device: torch.device,
) -> Safety:
    """Both measures; where there are too few images, the reason."""
    training = context.private_images("train")
    found = Safety()
    some = synthetic[_some(len(synthetic), MOST_COMPARED)]
    picture = None
    ways: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.floating]]] = {"pixels": _pixels}
    for name, of in (ways | {extractor.name: extractor for extractor in extractors[:1]}).items():
        try:
            compared = memorization(of(some), of(training[0]), of(test[0]))
        except DataError as few:
            found.not_computed[f"memorization, {name}"] = str(few)
            found.figures.extend(_internal([("Memorization", "–", f"{name}: {few}")]))
            continue
        found.metrics.setdefault("memorization", {})[name] = asdict(compared)
        found.figures.extend(_of_memorization(compared, name, len(some)))
        picture = picture or _side_by_side(compared, some, training[0])
    try:
        attacks = _attacks(context, training, test, device)
    except DataError as few:
        found.not_computed["membership inference"] = str(few)
        found.figures.extend(_internal([("Membership inference", "–", str(few))]))
    else:
        found.metrics["membership"] = {name: asdict(attack) for name, attack in attacks.items()}
        found.figures.extend(figure for name, attack in attacks.items() for figure in _of_attack(attack, name))
    return Safety(
        metrics=found.metrics, figures=found.figures, not_computed=found.not_computed, near_copies_png=picture
    )


def _attacks(context: StageContext, training: Images, test: Images, device: torch.device) -> dict[str, Membership]:
    """By the loss, and by how much fine-tuning lowered it, which leaves out how hard an image is by itself."""
    config = context.config
    if "finetune" not in context.inputs:
        raise DataError("the generator was trained on no sensitive image")
    tuned, start = (open_generator(context.inputs[stage], device)[0] for stage in ("finetune", "pretrain"))
    losses_of_images = code_of(config.generator).losses_of_images
    rows = rows_without_gradients(config.performance, device)
    by_loss, by_difference = [], []
    for images, labels in (training, test):
        chosen = _some(len(images), MOST_ATTACKED)
        after, before = (
            losses_of_images(model, images[chosen], labels[chosen], config.generator, device=device, batch_size=rows)
            for model in (tuned, start)
        )
        by_loss.append(-after)
        by_difference.append(before - after)
    delta = config.privacy.delta
    return {
        "loss": membership(by_loss[0], by_loss[1], delta),
        "loss, less that of the pre-trained generator": membership(by_difference[0], by_difference[1], delta),
    }


def _some(num: int, most: int) -> NDArray[np.int64]:
    """Rows, all or a random subset of them, ascending."""
    return np.sort(np.random.default_rng(SEED).permutation(num)[:most])


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.floating]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _side_by_side(found: Memorization, synthetic: NDArray[np.uint8], training: NDArray[np.uint8]) -> bytes:
    """Rows of two: a synthetic image and the training image nearest to it, nearest pair first."""
    images = [picture for row, other, _ in found.pairs for picture in (synthetic[row], training[other])]
    names = [f"{place}: distance {distance:.3g}" for place, (*_, distance) in enumerate(found.pairs, start=1)]
    return sample_grid(np.stack(images), np.repeat(np.arange(len(names)), 2), names, per_class=2)


def _of_memorization(found: Memorization, features: str, compared: int) -> list[Figure]:
    note = f"{features}; {compared:,} synthetic images"
    rows = [
        (
            "Nearer to a training than to a test image",
            f"{found.share_nearer_to_training:.1%}",
            f"{note}, {found.subset:,} training and as many test images; 50 % if nothing is memorized; p = {found.p_value:.3g}",
        ),
        (
            "Near-copies of training images",
            f"{found.near_copies:,}",
            f"{note}; nearer than {found.near:.3g}, as 1 % of the test images are: {0.01 * compared:,.0f} expected of images as "
            f"real as these; {found.exact_copies:,} are equal to one",
        ),
        (
            "Median distance to the nearest training, test image",
            f"{found.median_to_training:.3g}, {found.median_to_test:.3g}",
            f"{note}; of all training and all test images: of more images, one is nearer",
        ),
        (
            "Duplicates among synthetic images",
            f"{found.exact_duplicates:,} equal, {found.near_duplicates:,} near",
            f"{note} that have another one equal to them, or nearer than {found.near:.3g}",
        ),
    ]
    return _internal(rows)


def _of_attack(found: Membership, by: str) -> list[Figure]:
    note = f"by {by}; {found.members:,} training and {found.others:,} test images"
    rows = [
        ("Membership inference: AUC", _interval(found.auc), f"{note}; 0.5 if nothing can be told"),
        (
            f"Membership inference: true positives at {FALSE_POSITIVES:.0%} false ones",
            _interval(found.tpr),
            f"{note}; {FALSE_POSITIVES:g} if nothing can be told",
        ),
        (
            "Membership inference: epsilon is at least",
            f"{found.epsilon:.3g}",
            f"{note}; confidence {CONFIDENCE:.0%}; assumes that training and test images are alike and independent",
        ),
    ]
    return _internal(rows)


def _internal(rows: Sequence[tuple[str, str, str]]) -> list[Figure]:
    """From name, value and note."""
    return [Figure(name=name, value=value, note=note, kind="internal") for name, value, note in rows]


def _interval(found: Share) -> str:
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
