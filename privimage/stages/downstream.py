"""Stage `downstream`: classifiers trained on the synthetic images. Post-processing: it sees no sensitive image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from privimage.data.table import read_images, read_probabilities
from privimage.evaluation.classifiers import ARCHITECTURES, new_classifier
from privimage.evaluation.utility import check_enough, train
from privimage.machine.device import choose_device
from privimage.payloads import Downstream, Synthesis, TrainedClassifier
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.artifacts import Artifact
from privimage.store.weights import save_weights

__all__ = ["TrainedModels", "open_downstream", "run"]


@dataclass(frozen=True, kw_only=True)
class TrainedModels:
    """What the stage made.

    Attributes:
        models: by architecture, one for each seed, in evaluation mode.
        accuracies: of each, on held-out synthetic images.
        chosen: the architecture of the highest mean of these.
        shape: (channels, height, width) of the images they were trained on.
        num_steps: optimizer steps of each training.
    """

    models: Mapping[str, Sequence[torch.nn.Module]]
    accuracies: Mapping[str, Sequence[float]]
    chosen: str
    shape: tuple[int, int, int]
    num_classes: int
    num_steps: int


def run(context: StageContext) -> Outcome:
    """Writes <architecture>-<seed>.safetensors for each training, and downstream.json.

    Raises:
        DataError: a class has too few synthetic images.
    """
    config = context.config.evaluate
    synthetic = context.inputs["synthesize"]
    about = Synthesis.read(synthetic)
    names = about.class_names
    images, labels = (torch.from_numpy(part) for part in read_images(synthetic.files("images-"), spill=context.folder))
    check_enough(labels, names)
    released = read_probabilities(synthetic.files("images-")) if config.learn_from == "probabilities" else None
    probabilities = None if released is None else torch.from_numpy(released)
    device = choose_device(context.config.performance.device)
    trained: dict[str, list[TrainedClassifier]] = {name: [] for name in config.classifiers}
    for name in config.classifiers:
        for seed in range(config.seed, config.seed + config.seeds):
            found = train(
                name,
                images,
                labels,
                len(names),
                config,
                device,
                seed=seed,
                probabilities=probabilities,
                progress=context.progress.track,
                description=f"downstream: {name}, seed {seed}",
            )
            save_weights(found.model.state_dict(), context.folder / f"{name}-{seed}.safetensors")
            trained[name].append(
                TrainedClassifier(
                    seed=seed,
                    file=f"{name}-{seed}.safetensors",
                    num_parameters=sum(parameter.numel() for parameter in found.model.parameters()),
                    epoch=found.epoch,
                    accuracy=found.accuracy,
                    curve=tuple(found.curve),
                    num_steps=found.num_steps,
                )
            )
    means = {name: sum(each.accuracy for each in runs) / len(runs) for name, runs in trained.items()}
    chosen = max(means, key=lambda name: means[name])
    Downstream(
        guarantee=about.guarantee,
        class_names=names,
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        about={name: ARCHITECTURES[name].about for name in trained},
        classifiers={name: tuple(runs) for name, runs in trained.items()},
        chosen=chosen,
    ).write(context.folder)
    return Outcome(metrics={"chosen": chosen, "accuracy_on_synthetic": round(means[chosen], 4)})


def open_downstream(artifact: Artifact, device: torch.device) -> TrainedModels:
    """What the stage wrote, with its models on `device`."""
    about = Downstream.read(artifact)
    classes = len(about.class_names)
    models: dict[str, list[torch.nn.Module]] = {}
    for name, runs in about.classifiers.items():
        models[name] = []
        for each in runs:
            model = new_classifier(name, about.shape, classes, seed=0)
            model.load_state_dict(load_file(artifact.local(each.file)))
            models[name].append(model.to(device).eval())
    return TrainedModels(
        models=models,
        accuracies={name: [each.accuracy for each in runs] for name, runs in about.classifiers.items()},
        chosen=about.chosen,
        shape=about.shape,
        num_classes=classes,
        num_steps=next(iter(about.classifiers.values()))[0].num_steps,
    )
