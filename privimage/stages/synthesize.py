"""Stage `synthesize`: images of the fine-tuned generator."""

from __future__ import annotations

import json
from contextlib import closing

import torch

from privimage.config import ImageConfig
from privimage.data.table import TableWriter
from privimage.device import choose_devices, rows_without_gradients
from privimage.generators.shards import num_batches, sample_in_order
from privimage.pipeline import Outcome, StageContext
from privimage.stages.models import open_denoiser

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes images-*.parquet: synthetic images, classes in turn, one seed an image; and synthesis.json."""
    config, performance = context.config.synthesize, context.config.performance
    denoiser, facts = open_denoiser(context.inputs["finetune"], torch.device("cpu"))
    image = ImageConfig(resolution=facts["resolution"], channels=facts["channels"])
    shape = (image.channels, image.resolution, image.resolution)
    devices = choose_devices(performance)
    rows = rows_without_gradients(performance, devices[0])
    batches = sample_in_order(denoiser, shape, config, devices, rows)
    total = num_batches(config.num_images, devices, rows)
    with TableWriter(context.folder, "images", facts["class_names"], image) as table, closing(batches):
        for images, labels in context.progress.track(batches, "synthesize (batches)", total):
            for pixels, label in zip(images, labels, strict=True):
                table.add(pixels, label)
    about = {"class_names": facts["class_names"], "guarantee": facts["guarantee"]}
    (context.folder / "synthesis.json").write_text(json.dumps(about))
    return Outcome(metrics={"num_images": config.num_images})
