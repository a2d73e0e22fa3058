"""The classifier that a run trains on its own public images, as a backbone (`methods.backbones.classifier`)."""

from __future__ import annotations

import torch

from privimage.data.facts import public_facts
from privimage.data.table import read_images
from privimage.machine.device import choose_device, choose_precision
from privimage.payloads import ClassifierAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.semantics.classifier import ResNet, num_training_steps, open_classifier, train_classifier
from privimage.store.artifacts import Artifact
from privimage.store.weights import save_weights

__all__ = ["open_backbone", "run"]


def run(context: StageContext) -> Outcome:
    """Writes classifier.safetensors and classifier.json (settings, accuracy, curves)."""
    public = context.inputs["public"]
    facts = public_facts(public)
    images, labels = read_images(public.files("images-"), spill=context.folder)
    config, device = context.config.classifier, choose_device(context.config.performance.device)
    with context.progress.ticker("classifier", num_training_steps(len(images), config)) as tick:
        trained = train_classifier(
            torch.from_numpy(images),
            torch.from_numpy(labels),
            len(facts.class_names),
            config,
            device=device,
            precision=choose_precision(context.config.performance, device),
            on_step=tick,
        )
    save_weights(trained.model.state_dict(), context.folder / "classifier.safetensors")
    ClassifierAbout(
        config=config.model_dump(mode="json"),
        channels=facts.channels,
        resolution=facts.resolution,
        class_names=facts.class_names,
        validation_accuracy=trained.validation_accuracy,
        loss_curve=tuple(trained.loss_curve),
        accuracy_curve=tuple(trained.accuracy_curve),
    ).write(context.folder)
    return Outcome(metrics={"validation_accuracy": round(trained.validation_accuracy, 4)})


def open_backbone(artifact: Artifact) -> ResNet:
    return open_classifier(artifact, torch.device("cpu"))[0]
