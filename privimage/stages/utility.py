"""What the classifiers that were trained on synthetic images are worth on sensitive test images, and what real ones give.

Only sealed `evaluate` may use this: all of it is internal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from privimage.evaluation.utility import UtilityResult, check_shape, test, train
from privimage.payloads import Validation
from privimage.pipeline.stage import StageContext
from privimage.reports.figures import Figure
from privimage.stages.downstream import TrainedModels

__all__ = ["Utilities", "measure_utility"]


@dataclass(frozen=True, kw_only=True)
class _Utility:
    """Of one architecture: a result for each seed, on test images, trained on synthetic and on real images."""

    synthetic: tuple[UtilityResult, ...]
    ceiling: tuple[UtilityResult, ...]


@dataclass(frozen=True, kw_only=True)
class Utilities:
    """Of all architectures, and the one that was chosen for them.

    Attributes:
        accuracy: of the chosen one, mean over seeds; `confusion` is its matrix, added up over seeds.
        metrics: all of it, as JSON.
        figures: for the internal report, the chosen one first.
    """

    accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    metrics: Mapping[str, Any]
    figures: Sequence[Figure]


def measure_utility(
    context: StageContext, downstream: TrainedModels, images: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> Utilities:
    """Test every classifier on sensitive images, and, if asked to, the same ones trained on sensitive training images.

    Args:
        images: sensitive test images, uint8, shape (images, channels, height, width), with their class numbers `labels`.
    """
    config = context.config.evaluate
    utilities = _utilities(context, downstream, images, labels, device)
    chosen = downstream.chosen
    if "validate" in context.inputs:
        chosen = Validation.read(context.inputs["validate"]).chosen
    num_synthetic = context.inputs["synthesize"].manifest.metrics["num_images"]
    tested = f"trained on {num_synthetic:,} synthetic images, on {len(images):,} test images"
    return Utilities(
        accuracy=_mean(utilities[chosen].synthetic),
        confusion=_added([result.confusion for result in utilities[chosen].synthetic]),
        metrics={
            "chosen": chosen,
            "chosen_by": config.validation,
            "seeds": [config.seed + at for at in range(config.seeds)],
            "classifiers": {
                name: {
                    "accuracy_on_held_out_synthetic": list(downstream.accuracies[name]),
                    "synthetic": _summary(found.synthetic),
                    "ceiling": _summary(found.ceiling) if found.ceiling else None,
                }
                for name, found in utilities.items()
            },
        },
        figures=_utility_figures(utilities, chosen, tested),
    )


def _utilities(
    context: StageContext, downstream: TrainedModels, images: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> dict[str, _Utility]:
    """Every classifier on the test images; beside it the same one, trained as many steps on the real training images."""
    config, classes = context.config.evaluate, downstream.num_classes
    check_shape(images, downstream.shape)
    real = [torch.from_numpy(part) for part in context.private_images("train")] if config.ceiling else []
    utilities = {}
    for name, models in downstream.models.items():
        ceiling = [
            train(
                name,
                real[0],
                real[1],
                classes,
                config,
                device,
                seed=config.seed + at,
                num_steps=downstream.num_steps,
                progress=context.progress.track,
                description=f"evaluate: {name} on sensitive images, seed {config.seed + at}",
            ).model
            for at in range(config.seeds if config.ceiling else 0)
        ]
        utilities[name] = _Utility(
            synthetic=tuple(test(model, images, labels, classes) for model in models),
            ceiling=tuple(test(model, images, labels, classes) for model in ceiling),
        )
    return utilities


def _mean(results: Sequence[UtilityResult]) -> float:
    return sum(result.accuracy for result in results) / len(results)


def _deviation(results: Sequence[UtilityResult]) -> float | None:
    """Over seeds; None for a single one."""
    return float(np.std([result.accuracy for result in results], ddof=1)) if len(results) > 1 else None


def _added(confusions: Sequence[tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
    """Confusion matrices of all seeds in one."""
    return tuple(tuple(map(int, row)) for row in np.sum(confusions, axis=0))


def _summary(results: Sequence[UtilityResult]) -> dict[str, Any]:
    return {
        "accuracy": _mean(results),
        "deviation": _deviation(results),
        "of_each_seed": [
            {"accuracy": result.accuracy, "per_class": list(result.per_class), "confusion": result.confusion}
            for result in results
        ],
    }


def _utility_figures(utilities: Mapping[str, _Utility], chosen: str, tested: str) -> list[Figure]:
    """The chosen classifier first; beside each the ceiling."""
    figures = []
    for name, found in sorted(utilities.items(), key=lambda item: item[0] != chosen):
        about = "Accuracy on the sensitive test images" + ("" if name == chosen else f", {name}")
        figures.append(
            Figure(name=about, value=_with_deviation(found.synthetic), note=f"of {name}, {tested}", kind="internal")
        )
        if found.ceiling:
            note = f"the same {name}, trained as many steps on the sensitive training images: the ceiling"
            figures.append(
                Figure(name=f"{about}: ceiling", value=_with_deviation(found.ceiling), note=note, kind="internal")
            )
    return figures


def _with_deviation(results: Sequence[UtilityResult]) -> str:
    deviation = _deviation(results)
    seeds = f" ± {deviation:.1%} ({len(results)} seeds)" if deviation is not None else ""
    return f"{_mean(results):.1%}{seeds}"
