"""How few evaluations of the network sampling needs: solvers beside 250 evaluations, by FID on a classifier's features.

    python -m benchmarks.sampling [--folder DIR] [--public FILE.parquet --resolution 16]

A classifier and a generator are trained on four fifths of the public images (the demo's glyphs, unless a Parquet file is
given), or taken from the folder if they were trained there before. Every solver then makes the same sets of images: same
seeds, same classes.

evaluations  of the network for an image; with guidance each step counts twice, also where both are one call
fid real     to the fifth of the images that was held out; mean over the sets
+-           that less the figure of 250 evaluations on the same set; mean, and its standard error over the sets
fid 250      to the images that 250 evaluations make of the same seeds
levels       root mean square of the difference to these, pixel by pixel, in levels of 255
ms           per image, in one thread

Below are two floors: `another draw` compares the 250 evaluations of one set with those of the next, `real images` compares
as many training images with those held out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from privimage.config.classifier import ClassifierConfig
from privimage.config.images import ImageConfig
from privimage.config.sources import DemoGlyphs, ParquetSource
from privimage.data.admission import admit_public
from privimage.data.facts import TableFacts
from privimage.data.pixels import to_pixels
from privimage.data.table import read_images
from privimage.evaluation.features import FeatureExtractor, network_extractor
from privimage.evaluation.fidelity import fid
from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.generators.diffusion.solver import DenoiseFn, guided, sample_multistep, sigma_schedule
from privimage.generators.sampling.sampler import initial_noise
from privimage.generators.training.pretrain import evenly, pretrain
from privimage.machine.progress import Terminal
from privimage.methods.generators.diffusion import DenoiserConfig, DiffusionPretrain, DiffusionSampling
from privimage.semantics.classifier import new_classifier, train_classifier

ROWS = 64
CPU = torch.device("cpu")
Solver = Callable[[DenoiseFn, Tensor, list[float]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A generator, real images that neither it nor the classifier has seen, and the features to compare by."""

    denoiser: Denoiser
    training: Tensor
    held_out: Tensor
    extractor: FeatureExtractor


@dataclass(frozen=True, kw_only=True)
class Way:
    """A solver, its noise levels, and how many evaluations that makes for an image."""

    solver: Solver
    sigmas: list[float]
    evaluations: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where images and networks are kept; default: a temporary folder")
    parser.add_argument("--public", help="a Parquet file of gray public images; default: the demo's glyphs")
    parser.add_argument("--resolution", type=int, default=8)
    parser.add_argument("--train-steps", type=int, default=1500, help="of the generator, 128 images each")
    parser.add_argument("--images", type=int, default=1000, help="in a set")
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        subject = prepare(Path(options.folder or temporary), options.public, options.resolution, options.train_steps)
        compare(subject, options.images, options.sets, options.guidance)


def prepare(folder: Path, public: str | None, resolution: int, train_steps: int) -> Subject:
    """Images and networks from the folder, or made there."""
    if not (folder / "facts.json").exists():
        source = ParquetSource(path=public) if public else DemoGlyphs()
        admit_public(source, ImageConfig(resolution=resolution, channels=1), folder)
    facts = TableFacts.from_json((folder / "facts.json").read_text())
    if facts.resolution != resolution:
        raise SystemExit(f"{folder} holds images of {facts.resolution} pixels; name another folder.")
    images, labels = map(torch.from_numpy, read_images(sorted(folder.glob("images-*.parquet"))))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, training = order[: len(order) // 5], order[len(order) // 5 :]
    categories = len(facts.class_names)
    classifier_config = ClassifierConfig(base_channels=24, blocks=(1, 1, 1), epochs=5)
    classifier = new_classifier(classifier_config, channels=1, num_categories=categories)
    denoiser = new_denoiser(DenoiserConfig(base_channels=24), channels=1, num_classes=categories, seed=0)
    weights = folder / "classifier.safetensors"
    if not weights.exists():
        trained = train_classifier(images[training], labels[training], categories, classifier_config, device=CPU)
        save_file(trained.model.state_dict(), weights)
    classifier.load_state_dict(load_file(weights))
    weights = folder / f"denoiser-{train_steps}.safetensors"
    if not weights.exists():
        config = DiffusionPretrain(num_steps=train_steps, learning_rate=2e-3)
        with Terminal().ticker("training", train_steps) as tick:
            state = pretrain(
                denoiser,
                images[training],
                evenly(labels[training]),
                config,
                state=None,
                on_step=lambda s, _: tick(s.step),
            )
        save_file(state.ema, weights)
    denoiser.load_state_dict(load_file(weights))
    return Subject(
        denoiser=denoiser.eval(),
        training=images[training],
        held_out=images[held_out],
        extractor=network_extractor("public-classifier", classifier.eval().embed, CPU, 256),
    )


def ways(guidance: float) -> dict[str, Way]:
    """The reference first; then what is compared with it. Levels are those of the default, where no other is named."""
    default = DiffusionSampling()

    def way(solver: Solver, steps: int, evaluations: int | None = None, **other: float) -> Way:
        config = default.model_copy(update=other)
        sigmas = sigma_schedule(steps, config.sigma_min, config.sigma_max, config.rho)
        return Way(solver=solver, sigmas=sigmas, evaluations=(evaluations or steps) * (2 if guidance else 1))

    return {
        "Heun, 125 steps from 0.002": way(heun, 125, 249, sigma_min=0.002),
        "Heun, 10 steps from 0.002": way(heun, 10, 19, sigma_min=0.002),
        "Heun, 10 steps from 0.02": way(heun, 10, 19, sigma_min=0.02),
        "Euler, 50 steps from 0.002": way(euler, 50, sigma_min=0.002),
        "Euler, 20 steps from 0.02": way(euler, 20, sigma_min=0.02),
        "multistep, 18 from 0.002": way(sample_multistep, 18, sigma_min=0.002),
        **{f"multistep, {n} from 0.02": way(sample_multistep, n, sigma_min=0.02) for n in (8, 10, 12, 14, 18, 20)},
        "multistep, 18 from 0.03": way(sample_multistep, 18, sigma_min=0.03),
        "multistep, 18 from 0.02 below 20": way(sample_multistep, 18, sigma_min=0.02, sigma_max=20.0),
        "multistep, 18 from 0.02, rho 10": way(sample_multistep, 18, sigma_min=0.02, rho=10.0),
    }


def heun(denoise: DenoiseFn, noise: Tensor, sigmas: list[float]) -> Tensor:
    """Karras et al. (2022), Algorithm 1: two evaluations a step, but the last."""
    x = noise * sigmas[0]
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        there = x + (following - sigma) * slope
        x = x + (following - sigma) * (slope + (there - denoise(there, following)) / following) / 2
    return denoise(x, sigmas[-1])


def euler(denoise: DenoiseFn, noise: Tensor, sigmas: list[float]) -> Tensor:
    """Of first order, one evaluation a step: DDIM, which the paper samples with (in 50 steps)."""
    x = noise * sigmas[0]
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) / sigma * (x - denoise(x, sigma))
    return denoise(x, sigmas[-1])


def compare(subject: Subject, images: int, sets: int, guidance: float) -> None:
    print(f"{'':34}{'evaluations':>12}{'fid real':>10}{'+-':>18}{'fid 250':>9}{'levels':>8}{'ms':>8}")
    channels, height, width = subject.training.shape[1:]
    shape = (channels, height, width)
    real = subject.extractor(subject.held_out)
    made: list[Tensor] = []
    references: list[np.ndarray] = []
    figures: dict[str, dict[str, float]] = {}
    for name, way in ways(guidance).items():
        begun = time.process_time()
        now = [draw(subject.denoiser, way, images, shape, number, guidance) for number in range(sets)]
        milliseconds = 1000 * (time.process_time() - begun) / (images * sets)
        features = [subject.extractor(one) for one in now]
        if not made:
            made, references = now, features
        to_real = [fid(one, real) for one in features]
        excess = [one - fid(reference, real) for one, reference in zip(to_real, references, strict=True)]
        squares = [float((a.double() - b).square().mean()) for a, b in zip(now, made, strict=True)]
        figures[name] = {
            "evaluations": way.evaluations,
            "fid_real": statistics.mean(to_real),
            "fid_real_excess": statistics.mean(excess),
            "fid_real_excess_error": error_of_mean(excess),
            "fid_250": statistics.mean(fid(a, b) for a, b in zip(features, references, strict=True)),
            "levels": statistics.mean(squares) ** 0.5,
            "milliseconds": milliseconds,
        }
        f = figures[name]
        print(
            f"{name:34}{way.evaluations:>12}{f['fid_real']:>10.3f}"
            f"{f['fid_real_excess']:>+10.3f} ±{f['fid_real_excess_error']:.3f}"
            f"{f['fid_250']:>9.4f}{f['levels']:>8.2f}{f['milliseconds']:>8.2f}",
            flush=True,
        )
    another = statistics.mean(fid(a, b) for a, b in pairwise(references)) if sets > 1 else float("nan")
    floor = statistics.mean(
        fid(subject.extractor(part), real) for part in subject.training[: images * sets].split(images)
    )
    print(f"{'another draw':34}{'':>12}{'':>10}{'':>18}{another:>9.4f}")
    print(f"{'real images':34}{'':>12}{floor:>10.3f}")
    rounded = {name: {key: round(value, 4) for key, value in row.items()} for name, row in figures.items()}
    print(
        json.dumps(
            {
                "images": images,
                "sets": sets,
                "guidance": guidance,
                "another_draw": round(another, 4),
                "real_images": round(floor, 4),
                "solvers": rounded,
            }
        )
    )


def draw(
    denoiser: Denoiser, way: Way, images: int, shape: tuple[int, int, int], number: int, guidance: float
) -> Tensor:
    """Set `number`, uint8 NCHW: classes in turn, one seed an image."""
    numbered = torch.arange(images)
    labels, seeds = numbered % denoiser.num_classes, numbered + (number << 32)
    with torch.no_grad():
        parts = [
            to_pixels(way.solver(guided(denoiser, some, guidance), initial_noise(of, shape), way.sigmas))
            for some, of in zip(labels.split(ROWS), seeds.split(ROWS), strict=True)
        ]
    return torch.cat(parts)


def error_of_mean(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
