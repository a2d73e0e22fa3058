"""From chosen categories to public images: post-processing, it costs nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from privimage.data.table import read_images
from privimage.semantics.index import rows_of_categories

__all__ = ["cap_rows", "classes_of", "read_selected", "select_rows"]


def cap_rows(classes: NDArray[np.int64], max_rows: int, seed: int) -> NDArray[np.int64]:
    """Positions of at most `max_rows` of the rows, drawn so that the classes come out as equal as they can, ascending.

    Args:
        classes: class of each candidate row. A class that has fewer rows than its share leaves the rest to others.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    held = np.bincount(classes, minlength=1)
    # Classes take one row each in turn, in random order: `turns` full rounds, and what is left of one more.
    turns = (
        bisect_right(range(int(held.max()) + 1), max_rows, key=lambda rounds: int(np.minimum(held, rounds).sum())) - 1
    )
    left = max_rows - int(np.minimum(held, turns).sum())
    # Numbers as short as they can be: for these, numpy sorts in linear time.
    shuffled = classes[order].astype(np.min_scalar_type(len(held)))
    by_class = np.split(np.argsort(shuffled, kind="stable"), np.cumsum(held)[:-1])
    last_round = np.sort(np.concatenate([members[turns : turns + 1] for members in by_class]))[:left]
    return np.sort(order[np.concatenate([*(members[:turns] for members in by_class), last_round])])


def classes_of(categories: NDArray[np.int64], picks: Sequence[Sequence[int]], num_categories: int) -> NDArray[np.int64]:
    """The sensitive class that each public category was given to; -1 for none."""
    table = np.full(num_categories, -1, dtype=np.int64)
    for number, chosen in enumerate(picks):
        table[list(chosen)] = number
    return table[categories]


def select_rows(
    index: ds.Dataset, picks: Sequence[Sequence[int]] | None, *, num_categories: int, max_rows: int | None, seed: int
) -> pa.Table:
    """The index rows of the categories in `picks`, in table order, with the class that each was given to as `class`.

    With `max_rows`, at most so many of them, chosen by `cap_rows`. `picks` None: all rows; the class of each is its category.
    """
    if picks is None:
        picks = [[category] for category in range(num_categories)]
    rows = rows_of_categories(index, [category for chosen in picks for category in chosen])
    rows = rows.append_column("class", pa.array(classes_of(rows["label"].to_numpy(), picks, num_categories)))
    if max_rows is None:
        return rows
    return rows.take(pa.array(cap_rows(rows["class"].to_numpy(), max_rows, seed)))


def read_selected(
    selected: pa.Table, open_shard: Callable[[int], Path], *, spill: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, channels, height, width) and classes (N,) of what `select_rows` gave, in its order.

    Args:
        open_shard: gives the file of the image table with that number. Only those are asked for that hold a selected
            image: a store on S3 need not send the others.
        spill: as for `read_images`.

    Raises:
        DataError: a file is missing or no image table, or has fewer rows than the selection says.
    """
    shards, place = np.unique(selected["shard"].to_numpy(), return_inverse=True)
    files = [open_shard(int(shard)) for shard in shards]
    starts = np.cumsum([0] + [pq.read_metadata(file).num_rows for file in files])
    images, _ = read_images(files, starts[place] + selected["row"].to_numpy(), spill=spill)
    return images, selected["class"].to_numpy().astype(np.int64)
