"""What both reports tell: the synthetic images, the query made visible, how well all agrees, how it was trained.

Nothing here opens a sensitive image: all of it is public or charged, and may leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from privimage.config.performance import Performance
from privimage.data.table import read_images, read_is_public
from privimage.evaluation.estimate import LEVEL
from privimage.evaluation.features import FeatureExtractor, network_extractor
from privimage.evaluation.measures import OF_SYNTHETIC_ALONE, Subject, measure
from privimage.machine.device import rows_without_gradients
from privimage.payloads import (
    BackboneAbout,
    ClassifierAbout,
    ClassMeanImages,
    FeatureMeans,
    GeneratorAbout,
    Query,
    Selection,
    Synthesis,
    Validation,
    finished,
)
from privimage.reports import contents
from privimage.reports.blocks import Section
from privimage.reports.figures import Figure
from privimage.reports.pictures import columns_that_fit, thumbnail_strip
from privimage.semantics.alignment import Aligned, effective_categories, mean_of, share_of_votes, similarity
from privimage.semantics.backbone import open_backbone
from privimage.semantics.query import top_votes
from privimage.store.artifacts import Artifact

__all__ = ["Told", "classifier_extractor", "tell"]

GRID_IMAGES = 12
EXAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class Told:
    """The figures that stand first, and sections."""

    headline: Sequence[Figure]
    sections: Sequence[Section]


def classifier_extractor(
    inputs: Mapping[str, Artifact], performance: Performance, device: torch.device
) -> FeatureExtractor:
    """The backbone as a feature extractor, which is always there."""
    backbone = open_backbone(inputs["classifier"], device)
    rows = rows_without_gradients(performance, device)
    return network_extractor(backbone.name, backbone.embed, device, rows, head=backbone.logits)


def tell(
    inputs: Mapping[str, Artifact],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    extractor: FeatureExtractor,
    features: np.ndarray,
) -> Told:
    """The sections of a run that may leave, in reading order.

    Args:
        images: the released ones, all of `synthesize`, with their class numbers.
        extractor: the public classifier, and the features of the images by it.
    """
    class_names = GeneratorAbout.read(inputs["pretrain"]).class_names
    is_public = read_is_public(inputs["synthesize"].files("images-"))
    alignment = _alignment(inputs, extractor, features, labels) if "query" in inputs else []
    validated = _validation(inputs["validate"]) if "validate" in inputs else []
    public = [*validated, *_score(extractor, features), *_facts(inputs, len(images))]
    return Told(
        headline=[
            replace(agreement, note="of sensitive and synthetic images, as the public classifier sees them; at best 1")
            for agreement in alignment[:1]
        ],
        sections=[
            contents.samples((images, labels), class_names, GRID_IMAGES, is_public=is_public),
            *([contents.figures(alignment, "Semantic alignment"), _query(inputs)] if alignment else []),
            contents.figures(public),
            _curves(inputs),
        ],
    )


def _query(inputs: Mapping[str, Artifact]) -> Section:
    """The noisy votes of each class, and examples of the categories that it chose."""
    query, select, public = inputs["query"], inputs["select"], inputs["public"]
    released = Query.read(query)
    rows = pq.read_table(select.local("selected.parquet"), columns=["id", "label"])
    ids, labels = rows["id"].to_numpy(), rows["label"].to_numpy()
    found = np.unique(labels)
    first = np.concatenate([ids[labels == category][:EXAMPLES] for category in found])
    images, of_image = read_images(public.files("images-"), first)
    columns = columns_that_fit(len(found), images, EXAMPLES)
    examples = {int(category): thumbnail_strip(images[of_image == category][:columns]) for category in found}
    return contents.semantic_query(
        class_names=released.class_names,
        category_names=released.category_names,
        votes=np.asarray(released.noisy_histogram),
        noise_stddev=released.noise_stddev,
        chosen=_chosen(select),
        examples=examples,
        paid_by=tuple(query.manifest.reservations),
    )


def _alignment(
    inputs: Mapping[str, Artifact], extractor: FeatureExtractor, features: np.ndarray, labels: NDArray[np.int64]
) -> list[Figure]:
    """How the votes spread, what the selection caught of them, and how like them the selection and the result are."""
    query, select = inputs["query"], inputs["select"]
    released = Query.read(query)
    votes, noise = np.asarray(released.noisy_histogram), released.noise_stddev
    synthetic_votes = _votes(extractor, features, labels, votes.shape, released.num_votes)
    chosen = _chosen(select)
    rows = pq.read_table(select.local("selected.parquet"), columns=["label", "class"])
    selected = np.zeros_like(synthetic_votes)
    np.add.at(selected, (rows["class"].to_numpy(), rows["label"].to_numpy()), 1)
    caught = [share_of_votes(row, picks, noise) for row, picks in zip(votes, chosen, strict=True)]
    like_selected = [similarity(row, mix, noise) for row, mix in zip(votes, selected, strict=True)]
    like_synthetic = [similarity(row, mix, noise) for row, mix in zip(votes, synthetic_votes, strict=True)]
    spread = [effective_categories(row, noise) for row in votes]

    def figure(name: str, value: str, note: str, of_class: str | None = None) -> Figure:
        paid_by = tuple(query.manifest.reservations)
        return Figure(name=name, value=value, note=note, kind="charged", paid_by=paid_by, of_class=of_class)

    noise_alone = "±: what the noise of the votes gives it"
    figures = [
        figure(
            "Semantic agreement",
            _said(mean_of(like_synthetic)),
            "1 = the public classifier sees in the synthetic images what it saw, by noisy votes, in the sensitive ones; "
            f"0 = nothing of it. Cosine of the votes, mean of the classes; {noise_alone}",
        ),
        figure(
            "Agreement of the selection",
            _said(mean_of(like_selected)),
            f"the same of the categories of the selected public images; {noise_alone}",
        ),
        figure(
            "Votes on chosen categories",
            _said(mean_of(caught)),
            f"share, mean of the classes; a little too high, because they were chosen by these votes; {noise_alone}",
        ),
    ]
    note = "Of the sensitive images' noisy votes. ±: what their noise gives it. –: noise drowns the votes."
    for number, name in enumerate(released.class_names):
        categories = spread[number]
        figures += [
            figure("categories in use", "–" if categories is None else f"{categories:.1f}", note, name),
            figure("on chosen ones", _said(caught[number]), note, name),
            figure("selection agrees", _said(like_selected[number]), note, name),
            figure("synthetic agree", _said(like_synthetic[number]), note, name),
        ]
    return figures


def _votes(
    extractor: FeatureExtractor, features: np.ndarray, labels: NDArray[np.int64], shape: tuple[int, ...], num_votes: int
) -> NDArray[np.int64]:
    """Votes of synthetic images by the query's own rule, exact, shape (classes, categories)."""
    probabilities = extractor.probabilities(features)
    histogram = np.zeros(shape, dtype=np.int64)
    if probabilities is not None:
        np.add.at(histogram, (labels[:, None], top_votes(torch.from_numpy(probabilities), num_votes)), 1)
    return histogram


def _curves(inputs: Mapping[str, Artifact]) -> Section:
    """Losses and accuracy of public training."""
    pretrained = GeneratorAbout.read(inputs["pretrain"])
    curves: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    if ClassifierAbout.FILE in inputs["classifier"].names:
        classifier = ClassifierAbout.read(inputs["classifier"])
        curves = {
            "Semantic classifier: loss by optimizer step": {"loss": classifier.loss_curve},
            "Semantic classifier: accuracy on held-out public images by step": {"accuracy": classifier.accuracy_curve},
        }
    if pretrained.loss_curve:
        curves["Generator, pre-training: loss by optimizer step"] = {"loss": _smooth(pretrained.loss_curve)}
    if "warmup" in inputs:
        warmed = GeneratorAbout.read(inputs["warmup"])
        curves["Generator, warm-up with class mean images: loss by optimizer step"] = {
            "loss": _smooth(warmed.loss_curve)
        }
    return contents.curves(curves)


def _score(extractor: FeatureExtractor, features: np.ndarray) -> list[Figure]:
    """Fidelity as far as no sensitive image is needed for it."""
    alone = Subject(synthetic=features, private=features[:0], probabilities=extractor.probabilities(features))
    found = measure(alone, OF_SYNTHETIC_ALONE)
    measured = [
        Figure(
            name=name,
            value=f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})",
            note=f"{extractor.name} features, {estimate.num_synthetic:,} synthetic images; {LEVEL:.0%} interval",
            kind="public",
        )
        for name, estimate in found.estimates.items()
    ]
    return measured + [
        Figure(name=name, value="–", note=f"{extractor.name} features: {why}", kind="public")
        for name, why in found.not_computed.items()
    ]


def _facts(inputs: Mapping[str, Artifact], num_images: int) -> list[Figure]:
    """Of public training, of the query, which paid for its own, and of the generator."""
    generator = GeneratorAbout.read(finished(inputs))
    weights = finished(inputs).manifest.files[GeneratorAbout.WEIGHTS].size
    seconds = float(str(inputs["synthesize"].manifest.provenance["seconds"])) / num_images
    parameters = GeneratorAbout.read(inputs["pretrain"]).num_parameters

    def public_figure(name: str, value: str, note: str) -> Figure:
        return Figure(name=name, value=value, note=note, kind="public")

    selection = []
    if "select" in inputs:
        selected, public = inputs["select"].manifest.metrics, inputs["public"].manifest.metrics
        told = f"of {public['num_images']:,}, in {selected['num_categories']} categories"
        selection.append(public_figure("Selected public images", f"{selected['num_images']:,}", told))
    if "query" in inputs:
        query = inputs["query"]
        selection.append(
            Figure(
                name="Noise of the semantic query",
                value=f"{Query.read(query).noise_stddev:.3g} votes",
                note="standard deviation per category",
                kind="charged",
                paid_by=tuple(query.manifest.reservations),
            )
        )
    if "feature_means" in inputs:
        selection += _feature_means(inputs)
    if "class_means" in inputs:
        released = ClassMeanImages.read(inputs["class_means"])
        noise = float(np.mean(released.noise_in_means))
        selection.append(
            Figure(
                name="Noise of the class mean images",
                value=f"{noise / 2:.1%} of the pixel range",
                note="standard deviation per pixel of the mean image of a class, mean of the classes",
                kind="charged",
                paid_by=tuple(inputs["class_means"].manifest.reservations),
            )
        )
    return [
        _backbone(inputs["classifier"]),
        *selection,
        public_figure(
            "Parameters of the generator",
            f"{parameters:,}",
            f"{'without the critic that rejects some of what is drawn; with it ' if generator.rejects else ''}"
            f"{weights / 1e6:.1f} MB; {generator.resolution} x {generator.resolution} pixels",
        ),
        *_public_images(inputs["synthesize"], num_images),
        public_figure(
            "Time per synthetic image",
            f"{1000 * seconds:.3g} ms",
            "on the machine that made them; too short if it was interrupted",
        ),
    ]


def _feature_means(inputs: Mapping[str, Artifact]) -> list[Figure]:
    """How noisy the released means are, and what public images there are for each class, by these."""
    means = FeatureMeans.read(inputs["feature_means"])
    paid_by = tuple(inputs["feature_means"].manifest.reservations)
    noise = float(np.mean(means.noise_in_means) * np.sqrt(means.dimensions))
    figures = [
        Figure(
            name="Noise of the feature means",
            value=f"{noise:.1%} of a vector's length",
            note=f"in the mean of a class, mean of the classes; {means.dimensions} dimensions",
            kind="charged",
            paid_by=paid_by,
        )
    ]
    note = "Public images by the released means: with this class as their likeliest; with a probability above a half for it."
    for row in Selection.read(inputs["select"]).classes if "select" in inputs else ():
        if row.images:
            for name, value in (("public images", row.images.likeliest), ("sure of", row.images.sure)):
                figures.append(
                    Figure(name=name, value=f"{value:,}", note=note, kind="charged", paid_by=paid_by, of_class=row.name)
                )
    return figures


def _backbone(classifier: Artifact) -> Figure:
    """How good the network is that images are compared by, or where it is from."""
    if ClassifierAbout.FILE in classifier.names:
        about = ClassifierAbout.read(classifier)
        note = f"on held-out public images of {len(about.class_names)} categories"
        return Figure(
            name="Accuracy of the semantic classifier",
            value=f"{about.validation_accuracy:.1%}",
            note=note,
            kind="public",
        )
    ready = BackboneAbout.read(classifier)
    note = f"trained on {ready.trained_on}; weights of SHA-256 {ready.weights_sha256[:16]}…"
    return Figure(name="Backbone", value=ready.name, note=note, kind="public")


def _public_images(synthesize: Artifact, num_images: int) -> list[Figure]:
    """How many of the released images are public ones, or mixtures of them, if they may be."""
    about = Synthesis.read(synthesize)
    told = (
        (about.num_public, "Public images", "unchanged"),
        (about.num_mixed, "Mixtures of two public images", "by an autoencoder"),
    )
    return [
        Figure(
            name=name,
            value=f"{number:,}",
            note=f"of {num_images:,}; {how}; chosen together with drawn ones so that their features have the released means",
            kind="public",
        )
        for number, name, how in told
        if number is not None
    ]


def _validation(validate: Artifact) -> list[Figure]:
    """The noisy accuracies of the classifiers that were trained on synthetic images."""
    released = Validation.read(validate)
    noise = f"{released.noise_stddev:.2g}"
    return [
        Figure(
            name=f"Accuracy on validation images, {name}",
            value=f"{accuracy:.1%}",
            note=f"of {released.num_images:,} images, trained on synthetic ones; noise of standard deviation {noise}"
            + ("; chosen" if name == released.chosen else ""),
            kind="charged",
            paid_by=tuple(validate.manifest.reservations),
        )
        for name, accuracy in released.noisy_accuracies.items()
    ]


def _chosen(select: Artifact) -> list[list[int]]:
    """Numbers of the categories of each class, best first."""
    return Selection.read(select).numbers


def _said(figure: Aligned | None) -> str:
    return "–" if figure is None else f"{figure.value:.2f} ± {figure.deviation:.2f}"


def _smooth(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean over ten points: single losses of a diffusion model are noisy."""
    values = np.array([value for _, value in curve])
    return [(int(step), float(values[max(0, at - 9) : at + 1].mean())) for at, (step, _) in enumerate(curve)]
