"""Stage `select`: public images of the chosen categories. Post-processing: it costs nothing."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from privimage.data.facts import public_facts
from privimage.errors import Uncharged
from privimage.payloads import Query, SelectedCategory, SelectedClass, Selection
from privimage.pipeline.stage import Outcome, StageContext
from privimage.semantics.index import (
    INDEX_FILE,
    ROW_ENCODING,
    open_index,
    require_table,
    table_metadata,
)
from privimage.semantics.selection import select_rows
from privimage.store.artifacts import open_ref

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes selected.parquet (the chosen rows of the index, with their class) and selection.json (categories).

    Where public labels are kept, the class of a row is its category, and selection.json gives the sensitive classes none.
    """
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
