"""Stage `synthesize`: images of the finished generator; where feature means were released, chosen by these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

import torch

from privimage.data.table import PUBLIC, TableWriter
from privimage.generators.interface import chooser_of
from privimage.generators.opening import open_generator
from privimage.generators.sampling.batches import num_batches, sample_in_order
from privimage.generators.sampling.class_sizes import labels_of, shares_by_votes, standard_error
from privimage.machine.device import choose_devices, rows_without_gradients
from privimage.payloads import GeneratorAbout, Query, Synthesis, finished, guarantee_of, is_guaranteed
from privimage.pipeline.stage import Outcome, PartContext, StageContext
from privimage.stages.chosen_by_means import write_chosen

__all__ = ["make_part", "run"]

BATCH = 1024
PART_IMAGES = 10_000
"""Images of one part: few minutes of work, so that little is lost and machines share out evenly."""


def run(context: StageContext) -> Outcome:
    """Writes images-*.parquet, synthetic images; and synthesis.json. Each has a seed if they are not chosen together."""
    if context.config.public_images != "none":
        return _run_chosen(context)
    if "feature_means" in context.inputs:
        return _run_by_means(context)
    num_images = context.config.synthesize.num_images
    for number, part in enumerate(context.make_parts(_parts(num_images))):
        part.rename(context.folder / f"images-{number:05d}.parquet")
    _write_about(context)
    return Outcome(metrics={"num_images": num_images})


def _parts(num_images: int) -> list[range]:
    return [range(first, min(first + PART_IMAGES, num_images)) for first in range(0, num_images, PART_IMAGES)]


def _run_by_means(context: StageContext) -> Outcome:
    """As `run`: more images are drawn than are released, and chosen by what the released means see in them."""
    config, num_classes = context.config.synthesize, len(GeneratorAbout.read(finished(context.inputs)).class_names)
    files = context.make_parts(_parts(config.num_images * config.candidates))
    labels = labels_of(torch.arange(config.num_images), num_classes, _class_shares(context)).numpy()
    chosen = write_chosen(context, files, labels)
    for file in files:
        file.unlink()
    _write_about(context, **asdict(chosen))
    return Outcome(metrics={"num_images": config.num_images, **asdict(chosen)})


def _run_chosen(context: StageContext) -> Outcome:
    """As `run`, where images are chosen together, and so in one place."""
    unchanged = context.config.public_images == "unchanged"
    from_public, num_images, drawn_rejected = 0, 0, False
    about = GeneratorAbout.read(finished(context.inputs))
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
    num_candidates: int | None = None,
    as_asked: float | None = None,
) -> None:
    noise = None
    if context.config.synthesize.class_sizes == "query":
        query = Query.read(context.inputs["query"])
        noise = standard_error(query.noise_stddev, len(query.category_names), query.num_votes)
    Synthesis(
        guarantee=guarantee_of(is_guaranteed(context.inputs)),
        class_names=GeneratorAbout.read(finished(context.inputs)).class_names,
        num_public=num_public,
        num_mixed=num_mixed,
        drawn_rejected=drawn_rejected,
        class_size_stddev=noise,
        num_candidates=num_candidates,
        as_asked=as_asked,
    ).write(context.folder)


def make_part(context: PartContext) -> None:
    """The synthetic images of one range of numbers."""
    config, performance = context.config.synthesize, context.config.performance
    generator, about = open_generator(finished(context.inputs), torch.device("cpu"), context.config.generator)
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
