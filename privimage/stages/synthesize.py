"""Stage `synthesize`: images of the fine-tuned generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing

import torch

from privimage.config import ImageConfig
from privimage.data.table import PUBLIC, TableWriter
from privimage.device import choose_devices, rows_without_gradients
from privimage.generators.class_sizes import shares_by_votes, standard_error
from privimage.generators.shards import num_batches, sample_in_order
from privimage.pipeline import Outcome, PartContext, StageContext
from privimage.stages.choice import chosen_images
from privimage.stages.models import open_generator

__all__ = ["make_part", "run"]

PART_IMAGES = 10_000
"""Images of one part: few minutes of work, so that little is lost and machines share out evenly."""


def run(context: StageContext) -> Outcome:
    """Writes images-*.parquet, synthetic images; and synthesis.json. Each has a seed if they are not chosen together."""
    if context.config.public_images != "none":
        return _run_chosen(context)
    num_images = context.config.synthesize.num_images
    parts = [range(first, min(first + PART_IMAGES, num_images)) for first in range(0, num_images, PART_IMAGES)]
    for number, part in enumerate(context.make_parts(parts)):
        part.rename(context.folder / f"images-{number:05d}.parquet")
    _write_about(context)
    return Outcome(metrics={"num_images": num_images})


def _run_chosen(context: StageContext) -> Outcome:
    """As `run`, where images are chosen together, and so in one place."""
    unchanged = context.config.public_images == "unchanged"
    from_public, num_images, drawn_judged = 0, 0, False
    facts = context.inputs["finetune"].read_json("denoiser.json")
    image = ImageConfig(resolution=facts["resolution"], channels=facts["channels"])
    with TableWriter(context.folder, "images", facts["class_names"], image) as table:
        for chosen in chosen_images(context, _class_shares(context)):
            rows = zip(chosen.images.numpy(), chosen.labels.tolist(), chosen.is_other.tolist(), strict=True)
            for pixels, label, other in rows:
                table.add(pixels, label, path=PUBLIC if other and unchanged else None)
            num_images += len(chosen.labels)
            from_public += int(chosen.is_other.sum())
            drawn_judged = chosen.drawn_judged
    _write_about(context, drawn_judged=drawn_judged, **{"num_public" if unchanged else "num_mixed": from_public})
    return Outcome(metrics={"num_images": num_images})


def _class_shares(context: StageContext | PartContext) -> Sequence[float] | None:
    """Shares of the classes among the images; None = equal."""
    if context.config.synthesize.class_sizes == "equal":
        return None
    query = context.inputs["query"].read_json("query.json")
    return shares_by_votes(query["noisy_histogram"], query["num_votes"])


def _write_about(context: StageContext, **more: float) -> None:
    facts = context.inputs["finetune"].read_json("denoiser.json")
    if context.config.synthesize.class_sizes == "query":
        query = context.inputs["query"].read_json("query.json")
        noise = standard_error(query["noise_stddev"], len(query["category_names"]), query["num_votes"])
        more = {**more, "class_size_stddev": noise}
    about = {"class_names": facts["class_names"], "guarantee": facts["guarantee"], **more}
    (context.folder / "synthesis.json").write_text(json.dumps(about))


def make_part(context: PartContext) -> None:
    """The synthetic images of one range of numbers."""
    config, performance = context.config.synthesize, context.config.performance
    generator, facts = open_generator(context.inputs["finetune"], torch.device("cpu"))
    image = ImageConfig(resolution=facts["resolution"], channels=facts["channels"])
    shape = (image.channels, image.resolution, image.resolution)
    numbers = context.items
    devices = choose_devices(performance)
    rows = rows_without_gradients(performance, devices[0])
    batches = sample_in_order(generator, shape, numbers, config, devices, rows, _class_shares(context))
    total = num_batches(len(numbers), devices, rows)
    folder = context.file.parent
    with (
        TableWriter(folder, "images", facts["class_names"], image, len(numbers), first_id=numbers.start) as table,
        closing(batches),
    ):
        for images, labels in context.progress.track(
            batches, f"synthesize, from image {numbers.start:,} (batches)", total
        ):
            for pixels, label in zip(images, labels, strict=True):
                table.add(pixels, label)
    (folder / table.files[0]).rename(context.file)
