"""Stage `index`: what the backbone sees in each public image, as Parquet."""

from __future__ import annotations

import pyarrow.parquet as pq

from privimage.data.facts import public_facts
from privimage.data.table import iterate_images
from privimage.machine.device import choose_device, choose_precision
from privimage.pipeline.stage import Outcome, PartContext, StageContext
from privimage.semantics.backbone import open_backbone
from privimage.semantics.index import (
    write_index,
    write_predictions,
)
from privimage.store.artifacts import Artifact

__all__ = ["make_part", "run"]

INDEX_BATCH = 1024


def run(context: StageContext) -> Outcome:
    """Writes index.parquet and predictions-*.parquet, a part for each file of the image table."""
    public = context.inputs["public"]
    facts = public_facts(public)
    parts = [range(number, number + 1) for number in range(len(_tables(public)))]
    predictions = [
        part.rename(context.folder / f"predictions-{number:05d}.parquet")
        for number, part in enumerate(context.make_parts(parts))
    ]
    write_index(
        context.folder,
        predictions,
        category_names=facts.class_names,
        table_digest=public.ref.digest,
        num_images=facts.num_images,
    )
    return Outcome(metrics={"num_images": facts.num_images})


def make_part(context: PartContext) -> None:
    """What the backbone makes of one file of the image table."""
    public = context.inputs["public"]
    device = choose_device(context.config.performance.device)
    model = open_backbone(context.inputs["classifier"], device)
    file = public.local(_tables(public)[context.items.start])
    batches = -(-pq.read_metadata(file).num_rows // INDEX_BATCH)
    tracked = context.progress.track(
        iterate_images([file], INDEX_BATCH), f"index, file {context.items.start} (batches)", batches
    )
    with_features = context.config.selection.asks_feature_means
    write_predictions(
        context.file,
        tracked,
        model,
        device,
        with_features=with_features,
        precision=choose_precision(context.config.performance, device),
    )


def _tables(public: Artifact) -> list[str]:
    return [name for name in public.names if name.startswith("images-")]
