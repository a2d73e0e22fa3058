"""One whole run in a store of its own: time per stage, memory, and what the synthetic images are worth.

    python -m benchmarks.pipeline deployments/datasets/demo.yaml

Beside the release it measures two figures for comparison: a classifier trained on images of the generator *before*
fine-tuning (pre-training alone), and one trained on the real images (the ceiling). All three are tested on the real
test images: such figures are not differentially private. Use this with public stand-ins for sensitive data only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime

import numpy as np
import torch

from privimage.config.loading import load_config
from privimage.data.table import read_images
from privimage.evaluation.utility import test, train
from privimage.generators.opening import open_generator
from privimage.generators.sampling.sampler import synthesize_images
from privimage.machine.device import choose_device
from privimage.machine.progress import Terminal
from privimage.pipeline.stage import Stage
from privimage.release.certificate import Certificate
from privimage.running.granting import grant
from privimage.running.runner import StageResult, run_all
from privimage.running.runs import Run
from privimage.store.artifacts import open_ref
from privimage.store.files import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--store", metavar="URL", help="default: a temporary folder; a used one reuses its stages")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config=config, store=Store.open(options.store or folder), progress=Terminal())
        grant(run, epsilon=100.0, delta=config.privacy.delta, name="benchmark")
        seconds: dict[str, float] = {}

        def ended(stage: Stage, result: StageResult) -> None:
            seconds[stage.name] = round(result.seconds, 1)
            print(
                f"{stage.name}: {'reused' if result.reused else f'{result.seconds:.1f} s'}", file=sys.stderr, flush=True
            )

        begun = time.monotonic()
        results = run_all(run, on_end=ended)
        total = time.monotonic() - begun
        artifacts = {name: open_ref(run.store, result.ref) for name, result in results.items()}
        metrics = artifacts["evaluate"].read_json("metrics.json")
        certificate = Certificate.read(artifacts["release"])
        figures = {
            "config": config.name,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}",
            "epsilon": config.privacy.epsilon,
            "delta": config.privacy.delta,
            "epsilon_computed": round(certificate.epsilon_computed, 5),
            "epsilon_certified_lower": certificate.epsilon_certified_interval.lower,
            "noise_multiplier": round(artifacts["finetune"].manifest.metrics["noise_multiplier"], 4),  # type: ignore[arg-type]
            "parameters": artifacts["pretrain"].manifest.metrics["num_parameters"],
            "public_classifier_accuracy": artifacts["classifier"].manifest.metrics["validation_accuracy"],
            "seconds": seconds,
            "seconds_total": round(total, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "accuracy": round(metrics["accuracy_on_private_test"], 4),
            **_comparisons(run, artifacts),
            "fidelity": {
                extractor: {name: estimate["value"] for name, estimate in found["overall"].items()}
                for extractor, found in metrics["fidelity"].items()
            },
        }
    print(json.dumps(figures))


def _comparisons(run: Run, artifacts: dict) -> dict[str, float]:  # type: ignore[type-arg]
    """Accuracy on the real test images from pre-training alone, and from as many real images."""
    config, admit = run.config, artifacts["admit"]
    device = choose_device(config.performance.device)
    private_test, test_labels = (torch.from_numpy(array) for array in read_images(admit.files("test-")))
    private_train, train_labels = read_images(admit.files("train-"))
    generator, about = open_generator(artifacts["pretrain"], device, config.generator)
    classes = len(about.class_names)
    labels = torch.arange(config.synthesize.num_images) % classes
    seeds = torch.arange(len(labels))
    parts = [
        synthesize_images(generator, labels[at : at + 512], seeds[at : at + 512], about.shape)
        for at in range(0, len(labels), 512)
    ]
    few = np.random.default_rng(0).permutation(len(private_train))[: config.synthesize.num_images]

    def accuracy(images: torch.Tensor, labels: torch.Tensor) -> float:
        model = train("cnn", images, labels, classes, config.evaluate, device, seed=config.evaluate.seed).model
        return round(test(model, private_test, test_labels, classes).accuracy, 4)

    return {
        "accuracy_pretraining_alone": accuracy(torch.cat(parts), labels),
        "accuracy_real_images": accuracy(torch.from_numpy(private_train[few]), torch.from_numpy(train_labels[few])),
    }


if __name__ == "__main__":
    main()
