"""How long evaluation and report take at full size.

    python -m benchmarks.evaluation [--images 10000] [--resolution 32] [--classes 10 --categories 100]

Random images, and a classifier of the default size that has learnt nothing: times depend on numbers and sizes alone.

features     of as many images by the public classifier
fid          features of synthetic and of real images, and their FID: the target is 60 s for 10,000 images at 32 x 32
             seconds_fid_of_processors counts both cores: what a busy machine gave to others is not in it
measures     every measure of fidelity with its interval, on these features
report       a released and an internal report: targets 10 s and 5 MB

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from privimage.config.classifier import ClassifierConfig
from privimage.config.performance import Performance
from privimage.evaluation.features import network_extractor
from privimage.evaluation.fidelity import fid
from privimage.evaluation.measures import Subject, measure
from privimage.machine.device import rows_without_gradients
from privimage.reports import contents
from privimage.reports.blocks import Section
from privimage.reports.figures import Figure
from privimage.reports.pictures import columns_that_fit, thumbnail_strip
from privimage.reports.report import ReportData, render_report
from privimage.semantics.classifier import new_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--categories", type=int, default=100)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    shape = (options.images, 3, options.resolution, options.resolution)
    synthetic, real = (random.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    labels = np.arange(options.images) % options.classes
    model = new_classifier(ClassifierConfig(), channels=3, num_categories=options.categories).eval()
    device = torch.device("cpu")
    rows = rows_without_gradients(Performance(), device)
    extract = network_extractor("public-classifier", model.embed, device, rows, head=model.head)

    begun, busy = time.monotonic(), time.process_time()
    features = extract(synthetic)
    extracted = time.monotonic()
    others = extract(real)
    fid(features, others)
    compared, busy = time.monotonic(), time.process_time() - busy
    measure(Subject(synthetic=features, private=others, probabilities=extract.probabilities(features)))
    measured = time.monotonic()
    released, internal = _reports(synthetic, real, labels, options.classes, options.categories)
    told = time.monotonic()
    found = {
        "threads": torch.get_num_threads(),
        "seconds_features": round(extracted - begun, 2),
        "seconds_fid": round(compared - begun, 2),
        "seconds_fid_of_processors": round(busy, 2),
        "seconds_measures": round(measured - compared, 2),
        "seconds_both_reports": round(told - measured, 2),
        "megabytes_report": round(len(released.encode()) / 1e6, 2),
        "megabytes_internal_report": round(len(internal.encode()) / 1e6, 2),
    }
    for name, value in found.items():
        print(f"{name:28} {value}")
    print(json.dumps({**vars(options), **found}))


def _reports(
    synthetic: np.ndarray, real: np.ndarray, labels: np.ndarray, classes: int, categories: int
) -> tuple[str, str]:
    """A released and an internal report with everything that depends on the numbers of classes and categories."""
    names = [f"class {number}" for number in range(classes)]
    chosen = [[(3 * number + place) % categories for place in range(3)] for number in range(classes)]
    columns = columns_that_fit(categories, real, 6)
    sections: list[Section] = [
        contents.samples((synthetic, labels), names, 12, is_public=np.zeros(len(labels), dtype=bool)),
        contents.semantic_query(
            class_names=names,
            category_names=[f"category {number}" for number in range(categories)],
            votes=np.random.default_rng(0).normal(50, 20, (classes, categories)),
            noise_stddev=7.0,
            chosen=chosen,
            examples={number: thumbnail_strip(real[number : number + columns]) for number in range(categories)},
            paid_by=("query",),
        ),
        contents.curves({f"Loss {n}": {"loss": [(at, 1 / (at + 1)) for at in range(1000)]} for n in range(3)}),
    ]
    figures = [
        Figure(name=name, value="0.5", note="note", kind="internal", of_class=of_class)
        for name in ("FID", "KID", "precision", "recall")
        for of_class in names
    ]
    counts = np.random.default_rng(0).integers(0, 99, (classes, classes)).tolist()
    private = [
        contents.real_beside_synthetic((synthetic, labels), (real, labels), names, 12),
        contents.figures(figures),
        contents.confusion(counts, names),
    ]

    def rendered(internal: bool, parts: list[Section]) -> str:
        return render_report(
            ReportData(
                title="benchmark",
                description="",
                internal=internal,
                epsilon=10.0,
                delta=1e-5,
                relation="zero-out",
                num_private_images=50_000,
                num_classes=classes,
                guarantee="differential privacy",
                sections=parts,
                paid=("query",),
            )
        )

    return rendered(False, sections), rendered(True, [*private, *sections])


if __name__ == "__main__":
    main()
