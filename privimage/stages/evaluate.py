"""Stage `evaluate`: figures against held-out sensitive images. Sealed: nothing of it is differentially private."""

from __future__ import annotations

import json

import numpy as np
import torch

from privimage.data.table import read_images
from privimage.device import choose_device, rows_without_gradients
from privimage.errors import DataError, Uncharged
from privimage.evaluation.features import FeatureExtractor, inception_extractor, network_extractor
from privimage.evaluation.fidelity import fid, kid
from privimage.evaluation.utility import test, train_on_synthetic
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.mechanisms import RELATION_IN_WORDS
from privimage.release.pictures import sample_grid
from privimage.release.report import Figure, ReportData, render_report
from privimage.stages.models import open_classifier

__all__ = ["run"]

NOTICE = "computed from sensitive images without a privacy charge: not differentially private, not for release"


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
    classifier, _ = open_classifier(context.inputs["classifier"], device)
    extractors: list[FeatureExtractor] = [
        network_extractor(
            "public-classifier", classifier.embed, device, rows_without_gradients(config.performance, device)
        )
    ]
    notes = {}
    try:
        extractors.append(inception_extractor(config.evaluate.inception_weights, device))
    except DataError as missing:
        if config.evaluate.inception_weights is not None:
            raise
        notes["inception"] = str(missing)
    fidelity = {}
    for extractor in context.progress.track(extractors, "evaluate: fidelity"):
        synthetic, private = extractor(images), extractor(private_images)
        fidelity[extractor.name] = {"fid": fid(synthetic, private), "kid": kid(synthetic, private)}
    metrics = {
        "notice": NOTICE,
        "accuracy_on_private_test": utility.accuracy,
        "accuracy_per_class": list(utility.per_class),
        "confusion": [list(row) for row in utility.confusion],
        "num_synthetic": len(images),
        "num_private_test": len(private_images),
        "fidelity": fidelity,
        "not_computed": notes,
    }
    (context.folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    (context.folder / "internal.html").write_text(
        render_report(_report(context, metrics, images, labels, utility.confusion))
    )
    return Outcome(metrics={"accuracy_on_private_test": utility.accuracy})


def _report(
    context: StageContext,
    metrics: dict[str, object],
    images: np.ndarray,
    labels: np.ndarray,
    confusion: tuple[tuple[int, ...], ...],
) -> ReportData:
    config, facts = context.config, context.facts
    if facts is None:
        raise Uncharged("Evaluation needs admitted images.")
    figures = [
        Figure(
            name="Accuracy on the sensitive test images",
            value=f"{metrics['accuracy_on_private_test']:.1%}",
            note=f"of a CNN trained on {len(images):,} synthetic images",
            kind="internal",
        )
    ]
    fidelity: dict[str, dict[str, float]] = metrics["fidelity"]  # type: ignore[assignment]
    for extractor, values in fidelity.items():
        for measure, value in values.items():
            note = f"{extractor} features, {len(images):,} synthetic against {metrics['num_private_test']} test images"
            figures.append(Figure(name=measure.upper(), value=f"{value:.4g}", note=note, kind="internal"))
    not_computed: dict[str, str] = metrics["not_computed"]  # type: ignore[assignment]
    for extractor, reason in not_computed.items():
        figures.append(Figure(name=f"FID and KID, {extractor}", value="–", note=reason, kind="internal"))
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
    )
