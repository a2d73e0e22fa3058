"""Stage `evaluate`: figures against held-out sensitive images. Sealed: nothing of it is differentially private."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from privimage.data.table import read_images
from privimage.device import choose_device, rows_without_gradients
from privimage.errors import DataError, Uncharged
from privimage.evaluation.estimate import LEVEL, Estimate
from privimage.evaluation.features import FeatureExtractor, inception_extractor, network_extractor
from privimage.evaluation.measures import MEASURES, Measured, Subject, measure
from privimage.evaluation.utility import test, train_on_synthetic
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.mechanisms import RELATION_IN_WORDS
from privimage.release.figures import Figure
from privimage.release.pictures import sample_grid
from privimage.release.report import ReportData, render_report
from privimage.stages.models import open_classifier
from privimage.stages.safety import measure_safety

__all__ = ["run"]

NOTICE = "computed from sensitive images without a privacy charge: not differentially private, not for release"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was measured on one extractor's features: of all images, and of each class."""

    overall: Measured
    per_class: dict[str, Measured]


def run(context: StageContext) -> Outcome:
    """Writes metrics.json and internal.html, both below `private/`."""
    if context.facts is None:
        raise Uncharged("Evaluation needs admitted images.")
    config, facts = context.config, context.facts
    device = choose_device(config.performance.device)
    images, labels = read_images(context.inputs["synthesize"].files("images-"))
    private_images, private_labels = context.private_images("test")
    classes = len(facts.class_names)
    model = train_on_synthetic(
        torch.from_numpy(images), torch.from_numpy(labels), classes, config.evaluate, device, context.progress.track
    )
    utility = test(model, torch.from_numpy(private_images), torch.from_numpy(private_labels), classes)
    extractors, absent = _extractors(context, device)
    fidelity = {}
    for extractor in context.progress.track(extractors, "evaluate: fidelity"):
        features = extractor(images)
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
    safety = measure_safety(context, images, (private_images, private_labels), extractors, device)
    metrics: dict[str, Any] = {
        "notice": NOTICE,
        "kind": "internal",
        "accuracy_on_private_test": utility.accuracy,
        "accuracy_per_class": list(utility.per_class),
        "confusion": [list(row) for row in utility.confusion],
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
        "safety": safety.metrics,
        "not_computed": {**absent, **_not_computed(fidelity), **safety.not_computed},
    }
    (context.folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    accuracy = Figure(
        name="Accuracy on the sensitive test images",
        value=f"{utility.accuracy:.1%}",
        note=f"of a CNN trained on {len(images):,} synthetic images, on {len(private_images):,} test images",
        kind="internal",
    )
    figures = [accuracy, *_figures(fidelity, absent), *safety.figures]
    report = _report(context, figures, images, labels, utility.confusion, safety.near_copies_png)
    (context.folder / "internal.html").write_text(render_report(report))
    return Outcome(metrics={"accuracy_on_private_test": utility.accuracy})


def _extractors(context: StageContext, device: torch.device) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The public classifier, and Inception where its weights are at hand; if not, why."""
    config = context.config
    classifier, _ = open_classifier(context.inputs["classifier"], device)
    rows = rows_without_gradients(config.performance, device)
    extractors = [network_extractor("public-classifier", classifier.embed, device, rows, head=classifier.head)]
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
    """All of them internal: what they compare with is sensitive, and nothing was charged."""
    figures = []
    for extractor, found in fidelity.items():
        for name, estimate in found.overall.estimates.items():
            note = f"{extractor} features, {_images(estimate)}; {LEVEL:.0%} interval"
            figures.append(Figure(name=name, value=_interval(estimate), note=note, kind="internal"))
        for name, why in found.overall.not_computed.items():
            figures.append(Figure(name=name, value="–", note=f"{extractor} features: {why}", kind="internal"))
        note = f"{extractor} features, {LEVEL:.0%} intervals. –: not computed; metrics.json says why."
        for of_class, each in found.per_class.items():
            cells = {name: _interval(each.estimates[name]) if name in each.estimates else "–" for name in MEASURES}
            figures += [
                Figure(name=name, value=value, note=note, kind="internal", of_class=of_class)
                for name, value in cells.items()
            ]
    return figures + [Figure(name=name, value="–", note=why, kind="internal") for name, why in absent.items()]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _images(estimate: Estimate) -> str:
    against = f" against {estimate.num_private:,} test" if estimate.num_private else ""
    return f"{estimate.num_synthetic:,} synthetic{against} images"


def _report(
    context: StageContext,
    figures: Sequence[Figure],
    images: np.ndarray,
    labels: np.ndarray,
    confusion: tuple[tuple[int, ...], ...],
    near_copies_png: bytes | None,
) -> ReportData:
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
        guarantee=context.inputs["synthesize"].read_json("synthesis.json")["guarantee"],
        samples_png=sample_grid(images, labels, facts.class_names, per_class=12),
        class_names=facts.class_names,
        chosen=[],
        curves={},
        figures=figures,
        mechanisms=[],
        costs=[],
        ledger_entries=[],
        provenance={},
        verify_command="",
        confusion=confusion,
        near_copies_png=near_copies_png,
    )
