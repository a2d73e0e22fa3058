"""Stage `evaluate`: figures against held-out sensitive images. Sealed: nothing of it is differentially private."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.data.table import read_images, read_is_public
from privimage.errors import DataError, Uncharged
from privimage.evaluation.comparable import check_comparable
from privimage.evaluation.estimate import LEVEL, Estimate
from privimage.evaluation.features import INCEPTION_SHA256, FeatureExtractor, inception_extractor
from privimage.evaluation.measures import MEASURES, OF_SYNTHETIC_ALONE, Measured, Subject, measure
from privimage.machine.device import choose_device
from privimage.payloads import Synthesis
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.mechanisms import RELATION_IN_WORDS
from privimage.reports import contents
from privimage.reports.blocks import Section
from privimage.reports.figures import Figure, Kind
from privimage.reports.report import ReportData, render_report
from privimage.reports.sections import classifier_extractor, tell
from privimage.stages.downstream import open_downstream
from privimage.stages.safety import Safety, measure_safety
from privimage.stages.utility import Utilities, measure_utility

__all__ = ["run"]

IMAGES = 12  # of each class, in the report
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
    check_comparable(images, labels, private_images, facts.class_names)
    utility = measure_utility(
        context,
        open_downstream(context.inputs["downstream"], device),
        torch.from_numpy(private_images),
        torch.from_numpy(private_labels),
        device,
    )
    extractors, absent = _extractors(context, device)
    features_by = {extractor.name: extractor(images) for extractor in extractors}
    fidelity = {
        extractor.name: _fidelity(
            extractor, features_by[extractor.name], labels, (private_images, private_labels), facts.class_names
        )
        for extractor in context.progress.track(extractors, "evaluate: fidelity")
    }
    safety = Safety()
    if config.evaluate.safety:
        safety = measure_safety(context, images, (private_images, private_labels), extractors, device)
    metrics = {
        **_metrics(utility, fidelity, safety, absent),
        "num_synthetic": len(images),
        "num_private_test": len(private_images),
    }
    (context.folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    told = tell(context.inputs, images, labels, extractors[0], features_by[extractors[0].name])
    # Public images are of no class here: real ones are compared with what was generated.
    generated = np.where(read_is_public(context.inputs["synthesize"].files("images-")), -1, labels)
    sections = [
        contents.real_beside_synthetic(
            (images, generated), (private_images, private_labels), facts.class_names, IMAGES
        ),
        contents.figures(utility.figures, "Utility"),
        contents.figures(_figures(fidelity, absent), "Fidelity"),
        contents.confusion(utility.confusion, facts.class_names),
        *([contents.figures(safety.figures, "Safety")] if safety.figures else []),
        *([contents.nearest_pairs(safety.near_copies_png)] if safety.near_copies_png else []),
        *told.sections,
    ]
    report = _report(context, [utility.figures[0], *told.headline], sections)
    (context.folder / "internal.html").write_text(render_report(report))
    return Outcome(metrics={"accuracy_on_private_test": utility.accuracy})


def _fidelity(
    extractor: FeatureExtractor,
    features: NDArray[np.floating],
    labels: NDArray[np.int64],
    private: tuple[NDArray[np.uint8], NDArray[np.int64]],
    class_names: Sequence[str],
) -> _Found:
    """How near synthetic features are to those of sensitive test images, of all and of each class."""
    private_images, private_labels = private
    everything = Subject(
        synthetic=features, private=extractor(private_images), probabilities=extractor.probabilities(features)
    )
    return _Found(
        overall=measure(everything),
        per_class={
            name: measure(everything.of(labels == number, private_labels == number))
            for number, name in enumerate(class_names)
        },
    )


def _metrics(
    utility: Utilities, fidelity: Mapping[str, _Found], safety: Safety, absent: Mapping[str, str]
) -> dict[str, Any]:
    """All figures, for programs."""
    return {
        "notice": NOTICE,
        "kind": "internal",
        "accuracy_on_private_test": utility.accuracy,
        "accuracy_per_class": [row[at] / sum(row) if sum(row) else None for at, row in enumerate(utility.confusion)],
        "confusion": [list(row) for row in utility.confusion],
        "utility": utility.metrics,
        "interval": LEVEL,
        "fidelity": {
            extractor: {
                "overall": _json(found.overall),
                "per_class": {name: _json(each) for name, each in found.per_class.items()},
            }
            for extractor, found in fidelity.items()
        },
        **({"inception_sha256": INCEPTION_SHA256} if "inception" in fidelity else {}),
        "safety": safety.metrics,
        "not_computed": {**absent, **_not_computed(fidelity), **safety.not_computed},
    }


def _extractors(context: StageContext, device: torch.device) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The public classifier, and Inception where its weights are at hand; if not, why."""
    config = context.config
    extractors = [classifier_extractor(context.inputs, config.performance, device)]
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
        guarantee=Synthesis.read(context.inputs["synthesize"]).guarantee,
        headline=headline,
        sections=sections,
    )
