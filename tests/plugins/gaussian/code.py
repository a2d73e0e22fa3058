"""The code of the kind: it learns nothing in public, and releases one noisy sum in private."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privimage.config.run import RunConfig
from privimage.data.facts import public_facts
from privimage.errors import DataError, Uncharged
from privimage.generators.interface import ImageSource
from privimage.generators.opening import load_weights, save_generator
from privimage.generators.training.gradients import admitted_classes
from privimage.methods.generator import GeneratorKind
from privimage.payloads import GeneratorAbout, Selection, guarantee_of
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.class_sums import noisy_class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSumRounds
from privimage.store.artifacts import Artifact

COUNT = 0.5  # the number of an image's vector that counts it


class Gaussians(ImageSource):
    """Means of the classes, (classes, C, H, W), in [-1, 1], and one width."""

    def __init__(self, means: Tensor, width: float) -> None:
        super().__init__()
        self.means = nn.Parameter(means)
        self.width = width
        self.num_classes = len(means)

    def noise_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return shape

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.means[labels] + self.width * noise


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """An image's vector, of norm at most 1: pixels, and the number that counts it."""

    private_images: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.private_images), int(np.prod(self.private_images.shape[1:])) + 1

    def __getitem__(self, rows: slice) -> NDArray[np.float64]:
        pixels = self.private_images[rows].reshape(-1, self.shape[1] - 1) / 127.5 - 1
        scaled = pixels * np.sqrt((1 - COUNT**2) / pixels.shape[1])
        return np.concatenate([scaled, np.full((len(scaled), 1), COUNT)], axis=1)


def new_generator(
    network: Mapping[str, Any], *, channels: int, resolution: int, num_classes: int, seed: int
) -> Gaussians:
    return Gaussians(torch.zeros(num_classes, channels, resolution, resolution), network["width"])


def open_generator(artifact: Artifact, settings: GeneratorKind | None, device: torch.device) -> Gaussians:
    about = GeneratorAbout.read(artifact)
    size = {"channels": about.channels, "resolution": about.resolution, "num_classes": len(about.class_names)}
    generator = new_generator(about.network, **size, seed=0)
    load_weights(generator, artifact)
    return generator.to(device).eval()


def run_pretrain(context: StageContext) -> Outcome:
    facts, settings = public_facts(context.inputs["public"]), context.config.generator
    chosen = context.inputs.get("select")
    names = tuple(Selection.read(chosen).class_names if chosen else admitted_classes(context))
    network = settings.model_dump(mode="json", include={"width"})
    size = {"channels": facts.channels, "resolution": facts.resolution, "num_classes": len(names)}
    weights = new_generator(network, **size, seed=0).state_dict()
    about = GeneratorAbout(
        kind=settings.kind,
        network=network,
        channels=facts.channels,
        resolution=facts.resolution,
        class_names=names,
        num_parameters=weights["means"].numel(),
        loss_curve=(),
    )
    save_generator(context.folder, about, weights)
    return Outcome(metrics={"num_parameters": about.num_parameters, "num_images": 0})


def rehearse_finetune(config: RunConfig, inputs: Mapping[str, Artifact]) -> None:
    open_generator(inputs["pretrain"], config.generator, torch.device("cpu"))


def run_finetune(context: StageContext) -> Outcome:
    paid, about = context.paid, GeneratorAbout.read(context.inputs["pretrain"])
    if paid is None or not isinstance(paid.mechanism, ClassSumRounds):
        raise Uncharged("The means were not charged.")
    images, labels = context.private_images("train")
    random = paid.random if isinstance(paid.random, InsecureRandomForTests) else None
    sums = noisy_class_sums(Vectors(private_images=images), labels, paid.mechanism.round(0), insecure_random=random)
    counts = np.maximum(sums[:, -1:] / COUNT, 1.0)
    means = sums[:, :-1] / np.sqrt((1 - COUNT**2) / (sums.shape[1] - 1)) / counts
    weights = {"means": torch.from_numpy(means).float().view(-1, *about.shape).clamp(-1, 1)}
    told = {"guarantee": guarantee_of(paid.random.guarantee), "mechanism": asdict(paid.mechanism)}
    save_generator(context.folder, about.model_copy(update=told), weights)
    return Outcome(metrics={"noise_multiplier": paid.mechanism.noise_multiplier})


def losses_of_images(generator: ImageSource, *given: Any, **named: Any) -> NDArray[np.float64]:
    raise DataError("a Gaussian has no loss of a given image")
