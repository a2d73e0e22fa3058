"""Stage `select`: public images that look like the sensitive ones, by what was released. Post-processing: it costs nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from privimage.data.facts import public_facts
from privimage.errors import Uncharged
from privimage.payloads import FeatureMeans, Query, SelectedCategory, SelectedClass, SelectedImages, Selection
from privimage.pipeline.stage import Outcome, StageContext
from privimage.semantics.index import (
    INDEX_FILE,
    ROW_ENCODING,
    open_index,
    require_table,
    table_metadata,
)
from privimage.semantics.selection import likeliest_classes, likeliest_rows, rows_of_batches, select_rows
from privimage.stages.feature_means import open_discriminant
from privimage.stages.space import features_of_index
from privimage.store.artifacts import open_ref

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes selected.parquet (the chosen rows of the index, with their class) and selection.json (categories).

    Where public labels are kept, the class of a row is its category, and selection.json gives the sensitive classes none. Where
    single images are selected, each row has `probabilities` of the classes as well, and selection.json tells what of them there is
    for each class.
    """
    return _images(context) if context.config.selection.asks_feature_means else _categories(context)


def _images(context: StageContext) -> Outcome:
    strategy, artifact = context.config.selection, context.inputs["index"]
    table = artifact.manifest.inputs["public"]
    index = open_index(artifact.local(INDEX_FILE))
    num_images = index.count_rows()
    require_table("The index", index.schema, digest=table.digest, num_images=num_images)
    discriminant = open_discriminant(context.inputs["feature_means"], context.inputs["space"])
    names = FeatureMeans.read(context.inputs["feature_means"]).class_names

    def probabilities() -> Iterator[NDArray[np.float32]]:
        return (discriminant.probabilities(features) for features, _ in features_of_index(artifact))

    likeliest, chances = likeliest_classes(probabilities())
    rows = likeliest_rows(likeliest, chances, len(names), strategy.rows_of_a_class)
    chosen = index.take(pa.array(rows)).append_column("class", pa.array(likeliest[rows].astype(np.int64)))
    of_rows = rows_of_batches(probabilities(), rows)
    chosen = chosen.append_column(
        "probabilities", pa.FixedSizeListArray.from_arrays(pa.array(of_rows.ravel()), len(names))
    ).replace_schema_metadata(table_metadata(table.digest, num_images))
    pq.write_table(chosen, context.folder / "selected.parquet", **ROW_ENCODING)
    expected = np.sum([part.sum(0, dtype=np.float64) for part in probabilities()], axis=0)
    Selection(
        classes=tuple(
            SelectedClass(
                name=name,
                categories=(),
                images=SelectedImages(
                    likeliest=int((likeliest == number).sum()),
                    expected=round(float(expected[number]), 1),
                    sure=int(((likeliest == number) & (chances > 0.5)).sum()),
                ),
            )
            for number, name in enumerate(names)
        )
    ).write(context.folder)
    return Outcome(metrics={"num_images": len(rows), "num_categories": len(np.unique(chosen["label"].to_numpy()))})


def _categories(context: StageContext) -> Outcome:
    strategy, artifact = context.config.selection, context.inputs["index"]
    index = open_index(artifact.local(INDEX_FILE))
    table, num_images = artifact.manifest.inputs["public"], index.count_rows()
    require_table("The index", index.schema, digest=table.digest, num_images=num_images)
    categories = public_facts(open_ref(context.store, table)).class_names
    votes = None
    if strategy.asks_the_query:
        released = Query.read(context.inputs["query"])
        votes, class_names = np.asarray(released.noisy_histogram), released.class_names
    elif context.facts is None:
        raise Uncharged("A selection without a query needs the class names of the admitted images.")
    else:
        class_names = context.facts.class_names
    picks = strategy.picks(votes, len(class_names), len(categories))
    rows = select_rows(
        index,
        picks,
        num_categories=len(categories),
        max_rows=strategy.max_rows(num_images),
        seed=strategy.seed_of_rows,
    ).replace_schema_metadata(table_metadata(table.digest, num_images))
    pq.write_table(rows, context.folder / "selected.parquet", **ROW_ENCODING)
    Selection(
        classes=tuple(
            SelectedClass(
                name=name,
                categories=tuple(
                    SelectedCategory(
                        number=at,
                        name=categories[at],
                        noisy_votes=None if votes is None else float(votes[number, at]),
                    )
                    for at in (picks[number] if picks else ())
                ),
            )
            for number, name in enumerate(class_names)
        )
    ).write(context.folder)
    used = len(categories) if picks is None else sum(map(len, picks))
    return Outcome(metrics={"num_images": len(rows), "num_categories": used})
