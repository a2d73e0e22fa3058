"""Stage `synthesize`: images of the fine-tuned generator."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from privimage.config import ImageConfig
from privimage.data.table import TableWriter
from privimage.device import choose_devices, rows_without_gradients
from privimage.generators.shards import num_batches, sample_in_order
from privimage.pipeline import Outcome, PartContext, StageContext
from privimage.stages.choice import CHOSEN
from privimage.stages.models import open_generator

__all__ = ["make_part", "run"]

PART_IMAGES = 10_000
"""Images of one part: few minutes of work, so that little is lost and machines share out evenly."""


def run(context: StageContext) -> Outcome:
    """Writes images-*.parquet: synthetic images, classes in turn, one seed an image that is drawn; and
    synthesis.json."""
    num_images = context.config.synthesize.num_images
    parts = [range(first, min(first + PART_IMAGES, num_images)) for first in range(0, num_images, PART_IMAGES)]
    for number, part in enumerate(context.make_parts(parts)):
        part.rename(context.folder / f"images-{number:05d}.parquet")
    facts = context.inputs["finetune"].read_json("denoiser.json")
    chosen = _chosen(context, range(num_images))
    about = {
        "class_names": facts["class_names"],
        "guarantee": facts["guarantee"],
        "num_chosen": len(chosen.images),
        "num_public": chosen.num_public,
    }
    (context.folder / "synthesis.json").write_text(json.dumps(about))
    return Outcome(metrics={"num_images": num_images})


def make_part(context: PartContext) -> None:
    """The synthetic images of one range of numbers: those that were chosen before, if any, and else drawn ones."""
    config, performance = context.config.synthesize, context.config.performance
    generator, facts = open_generator(context.inputs["finetune"], torch.device("cpu"))
    image = ImageConfig(resolution=facts["resolution"], channels=facts["channels"])
    shape = (image.channels, image.resolution, image.resolution)
    numbers = context.items
    chosen = _chosen(context, numbers)
    drawn = range(numbers.start + len(chosen.images), numbers.stop)
    devices = choose_devices(performance)
    rows = rows_without_gradients(performance, devices[0])
    batches = sample_in_order(generator, shape, drawn, config, devices, rows)
    total = num_batches(len(drawn), devices, rows)
    folder = context.file.parent
    with (
        TableWriter(folder, "images", facts["class_names"], image, len(numbers), first_id=numbers.start) as table,
        closing(batches),
    ):
        for number, pixels in zip(numbers, chosen.images, strict=False):
            table.add(pixels, number % generator.num_classes)
        for images, labels in context.progress.track(
            batches, f"synthesize, from image {drawn.start:,} (batches)", total
        ):
            for pixels, label in zip(images, labels, strict=True):
                table.add(pixels, label)
    (folder / table.files[0]).rename(context.file)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    images: NDArray[np.uint8]
    num_public: int


def _chosen(context: StageContext | PartContext, numbers: range) -> _Chosen:
    """Those of the images with these numbers that were chosen, and how many of them are public ones."""
    tuned = context.inputs["finetune"]
    if numbers.start >= tuned.read_json("denoiser.json").get("chosen", 0):
        return _Chosen(images=np.empty(0, dtype=np.uint8), num_public=0)
    rows = slice(numbers.start, numbers.stop)
    choices = {name: tensor[rows].numpy() for name, tensor in load_file(tuned.local(CHOSEN)).items()}
    if context.config.synthesize.public_images:
        return _Chosen(images=choices["mixed"], num_public=int(choices["public"].sum()))
    return _Chosen(images=choices["images"], num_public=0)
