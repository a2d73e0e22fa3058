"""Stage `synthesize`: images of the fine-tuned generator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch

from privimage.data.table import PUBLIC, TableWriter
from privimage.generators.interface import chooser_of
from privimage.generators.opening import open_generator
from privimage.generators.sampling.batches import num_batches, sample_in_order
from privimage.generators.sampling.class_sizes import shares_by_votes, standard_error
from privimage.machine.device import choose_devices, rows_without_gradients
from privimage.payloads import GeneratorAbout, Query, Synthesis
from privimage.pipeline.stage import Outcome, PartContext, StageContext

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
    from_public, num_images, drawn_rejected = 0, 0, False
    about = GeneratorAbout.read(context.inputs["finetune"])
    image = about.image
    with TableWriter(context.folder, "images", about.class_names, image) as table:
        for chosen in chooser_of(context.config.generator).chosen_images(context, _class_shares(context)):
            rows = zip(chosen.images.numpy(), chosen.labels.tolist(), chosen.is_other.tolist(), strict=True)
            for pixels, label, other in rows:
                table.add(pixels, label, path=PUBLIC if other and unchanged else None)
            num_images += len(chosen.labels)
            from_public += int(chosen.is_other.sum())
            drawn_rejected = chosen.drawn_rejected
    if unchanged:
        _write_about(context, drawn_rejected=drawn_rejected, num_public=from_public)
    else:
        _write_about(context, drawn_rejected=drawn_rejected, num_mixed=from_public)
    return Outcome(metrics={"num_images": num_images})


def _class_shares(context: StageContext | PartContext) -> Sequence[float] | None:
    """Shares of the classes among the images; None = equal."""
    if context.config.synthesize.class_sizes == "equal":
        return None
    query = Query.read(context.inputs["query"])
    return shares_by_votes(query.noisy_histogram, query.num_votes)


def _write_about(
    context: StageContext,
    *,
    drawn_rejected: bool | None = None,
    num_public: int | None = None,
    num_mixed: int | None = None,
) -> None:
    tuned = GeneratorAbout.read(context.inputs["finetune"])
    noise = None
    if context.config.synthesize.class_sizes == "query":
        query = Query.read(context.inputs["query"])
        noise = standard_error(query.noise_stddev, len(query.category_names), query.num_votes)
    Synthesis(
        guarantee=tuned.guarantee or "none",
        class_names=tuned.class_names,
        num_public=num_public,
        num_mixed=num_mixed,
        drawn_rejected=drawn_rejected,
        class_size_stddev=noise,
    ).write(context.folder)


def make_part(context: PartContext) -> None:
    """The synthetic images of one range of numbers."""
    config, performance = context.config.synthesize, context.config.performance
    generator, about = open_generator(context.inputs["finetune"], torch.device("cpu"), context.config.generator)
    image = about.image
    numbers = context.items
    devices = choose_devices(performance)
    rows = rows_without_gradients(performance, devices[0])
    batches = sample_in_order(generator, about.shape, numbers, config.seed, devices, rows, _class_shares(context))
    total = num_batches(len(numbers), devices, rows)
    folder = context.file.parent
    with (
        TableWriter(folder, "images", about.class_names, image, len(numbers), first_id=numbers.start) as table,
        closing(batches),
    ):
        for images, labels in context.progress.track(
            batches, f"synthesize, from image {numbers.start:,} (batches)", total
        ):
            for pixels, label in zip(images, labels, strict=True):
                table.add(pixels, label)
    (folder / table.files[0]).rename(context.file)
