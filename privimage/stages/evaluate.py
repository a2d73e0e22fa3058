"""Stage `evaluate`: figures against held-out sensitive images. Sealed: nothing of it is differentially private."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from privimage.data.table import read_images
from privimage.device import choose_device
from privimage.errors import DataError, Uncharged
from privimage.evaluation.comparable import check_comparable
from privimage.evaluation.estimate import LEVEL, Estimate
from privimage.evaluation.features import INCEPTION_SHA256, FeatureExtractor, inception_extractor
from privimage.evaluation.measures import MEASURES, OF_SYNTHETIC_ALONE, Measured, Subject, measure
from privimage.evaluation.utility import UtilityResult, check_shape, test, train
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.mechanisms import RELATION_IN_WORDS
from privimage.release import contents
from privimage.release.blocks import Section
from privimage.release.figures import Figure, Kind
from privimage.release.report import ReportData, render_report
from privimage.stages.downstream import Downstream, open_downstream
from privimage.stages.sections import classifier_extractor, tell

__all__ = ["run"]

IMAGES = 12  # of each class, in the report
NOTICE = "computed from sensitive images without a privacy charge: not differentially private, not for release"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was measured on one extractor's features: of all images, and of each class."""

    overall: Measured
    per_class: dict[str, Measured]


@dataclass(frozen=True, kw_only=True)
class _Utility:
    """Of one architecture: a result for each seed, on test images, trained on synthetic and on real images."""

    synthetic: tuple[UtilityResult, ...]
    ceiling: tuple[UtilityResult, ...]


def run(context: StageContext) -> Outcome:
    """Writes metrics.json and internal.html, both below `private/`."""
    if context.facts is None:
        raise Uncharged("Evaluation needs admitted images.")
    config, facts = context.config, context.facts
    device = choose_device(config.performance.device)
    images, labels = read_images(context.inputs["synthesize"].files("images-"))
    private_images, private_labels = context.private_images("test")
    check_comparable(images, labels, private_images, facts.class_names)
    downstream = open_downstream(context.inputs["downstream"], device)
    utilities = _utilities(
        context, downstream, torch.from_numpy(private_images), torch.from_numpy(private_labels), device
    )
    chosen = downstream.chosen
    if "validate" in context.inputs:
        chosen = context.inputs["validate"].read_json("validation.json")["chosen"]
    confusion = _added([result.confusion for result in utilities[chosen].synthetic])
    accuracy = _mean(utilities[chosen].synthetic)
    extractors, absent = _extractors(context, device)
    fidelity, features_by = {}, {}
    for extractor in context.progress.track(extractors, "evaluate: fidelity"):
        features = features_by[extractor.name] = extractor(images)
        everything = Subject(
            synthetic=features, private=extractor(private_images), probabilities=extractor.probabilities(features)
        )
        fidelity[extractor.name] = _Found(
            overall=measure(everything),
            per_class={
                name: measure(everything.of(labels == number, private_labels == number))
                for number, name in enumerate(facts.class_names)
            },
        )
    metrics: dict[str, Any] = {
        "notice": NOTICE,
        "kind": "internal",
        "accuracy_on_private_test": accuracy,
        "accuracy_per_class": [row[at] / sum(row) if sum(row) else None for at, row in enumerate(confusion)],
        "confusion": [list(row) for row in confusion],
        "utility": {
            "chosen": chosen,
            "chosen_by": config.evaluate.validation,
            "seeds": [config.evaluate.seed + at for at in range(config.evaluate.seeds)],
            "classifiers": {
                name: {
                    "accuracy_on_held_out_synthetic": list(downstream.accuracies[name]),
                    "synthetic": _summary(found.synthetic),
                    "ceiling": _summary(found.ceiling) if found.ceiling else None,
                }
                for name, found in utilities.items()
            },
        },
        "num_synthetic": len(images),
        "num_private_test": len(private_images),
        "interval": LEVEL,
        "fidelity": {
            extractor: {
                "overall": _json(found.overall),
                "per_class": {name: _json(each) for name, each in found.per_class.items()},
            }
            for extractor, found in fidelity.items()
        },
        **({"inception_sha256": INCEPTION_SHA256} if "inception" in fidelity else {}),
        "not_computed": {**absent, **_not_computed(fidelity)},
    }
    (context.folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    tested = f"trained on {len(images):,} synthetic images, on {len(private_images):,} test images"
    utility = _utility_figures(utilities, chosen, tested)
    told = tell(context.inputs, images, labels, extractors[0], features_by[extractors[0].name])
    sections = [
        contents.real_beside_synthetic((images, labels), (private_images, private_labels), facts.class_names, IMAGES),
        contents.figures([*utility, *_figures(fidelity, absent)]),
        contents.confusion(confusion, facts.class_names),
        *told.sections,
    ]
    (context.folder / "internal.html").write_text(
        render_report(_report(context, [utility[0], told.headline], sections))
    )
    return Outcome(metrics={"accuracy_on_private_test": accuracy})


def _utilities(
    context: StageContext, downstream: Downstream, images: torch.Tensor, labels: torch.Tensor, device: torch.device
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


def _extractors(context: StageContext, device: torch.device) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The public classifier, and Inception where its weights are at hand; if not, why."""
    config = context.config
    extractors = [classifier_extractor(context, device)]
    try:
        extractors.append(inception_extractor(config.evaluate.inception_weights, device))
    except DataError as missing:
        if config.evaluate.inception_weights is not None:
            raise
        return extractors, {"inception": str(missing)}
    return extractors, {}


def _json(measured: Measured) -> dict[str, dict[str, float]]:
    return {name: asdict(estimate) for name, estimate in measured.estimates.items()}


def _not_computed(fidelity: Mapping[str, _Found]) -> dict[str, str]:
    """Reasons, by measure, extractor and class."""
    reasons: dict[str, str] = {}
    for extractor, found in fidelity.items():
        parts = {"": found.overall} | {f", class {name}": each for name, each in found.per_class.items()}
        for part, measured in parts.items():
            reasons |= {f"{name}, {extractor}{part}": why for name, why in measured.not_computed.items()}
    return reasons


def _figures(fidelity: Mapping[str, _Found], absent: Mapping[str, str]) -> list[Figure]:
    """Internal, where what they compare with is sensitive: nothing was charged."""
    figures = []
    for extractor, found in fidelity.items():
        for name, estimate in found.overall.estimates.items():
            note = f"{extractor} features, {_images(estimate)}; {LEVEL:.0%} interval"
            figures.append(Figure(name=name, value=_interval(estimate), note=note, kind=_kind(name)))
        for name, why in found.overall.not_computed.items():
            figures.append(Figure(name=name, value="–", note=f"{extractor} features: {why}", kind=_kind(name)))
        note = f"{extractor} features, {LEVEL:.0%} intervals. –: not computed; metrics.json says why."
        for of_class, each in found.per_class.items():
            cells = {name: _interval(each.estimates[name]) if name in each.estimates else "–" for name in MEASURES}
            figures += [
                Figure(name=name, value=value, note=note, kind=_kind(name), of_class=of_class)
                for name, value in cells.items()
            ]
    return figures + [Figure(name=name, value="–", note=why, kind="internal") for name, why in absent.items()]


def _kind(measure_name: str) -> Kind:
    """Both extractors were trained on public images: what they say of synthetic images alone is public."""
    return "public" if measure_name in OF_SYNTHETIC_ALONE else "internal"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _images(estimate: Estimate) -> str:
    against = f" against {estimate.num_private:,} test" if estimate.num_private else ""
    return f"{estimate.num_synthetic:,} synthetic{against} images"


def _report(context: StageContext, headline: Sequence[Figure], sections: Sequence[Section]) -> ReportData:
    config, facts = context.config, context.facts
    if facts is None:
        raise Uncharged("Evaluation needs admitted images.")
    return ReportData(
        title=f"{config.name}: internal evaluation",
        description=config.description,
        internal=True,
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        relation=RELATION_IN_WORDS,
        num_private_images=facts.num_train,
        num_classes=len(facts.class_names),
        guarantee=context.inputs["synthesize"].read_json("synthesis.json")["guarantee"],
        headline=headline,
        sections=sections,
    )
