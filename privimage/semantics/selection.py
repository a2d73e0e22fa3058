"""From chosen categories to public images: post-processing, it costs nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from privimage.data.table import read_images
from privimage.semantics.index import rows_of_categories

__all__ = [
    "cap_rows",
    "classes_of",
    "likeliest_classes",
    "likeliest_rows",
    "probabilities_of",
    "read_selected",
    "rows_of_batches",
    "select_rows",
]


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


def likeliest_classes(batches: Iterable[NDArray[np.float32]]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The likeliest class of each image, and its probability, (N,) each, of batches of probabilities, (images, classes)."""
    found = [(part.argmax(1).astype(np.int32), part.max(1)) for part in batches]
    return np.concatenate([labels for labels, _ in found]), np.concatenate([chances for _, chances in found])


def likeliest_rows(
    likeliest: NDArray[np.int32], chances: NDArray[np.float32], num_classes: int, per_class: int | None
) -> NDArray[np.int64]:
    """Rows of at most `per_class` images of each class (None = all), those with the highest `chances` among its own, ascending."""
    chosen = []
    for number in range(num_classes):
        own = np.flatnonzero(likeliest == number)
        chosen.append(own[np.argsort(-chances[own], kind="stable")[:per_class]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def rows_of_batches(batches: Iterable[NDArray[np.float32]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Those `rows`, ascending, of what the batches hold together."""
    at, found = 0, []
    for part in batches:
        within = rows[np.searchsorted(rows, at) : np.searchsorted(rows, at + len(part))]
        found.append(part[within - at])
        at += len(part)
    return np.concatenate(found)


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


def probabilities_of(selected: pa.Table) -> NDArray[np.float32] | None:
    """Probabilities of the classes, (N, classes), of a selection of single images; None of one of categories."""
    if "probabilities" not in selected.column_names:
        return None
    rows = selected["probabilities"].combine_chunks()
    return np.array(rows.flatten().to_numpy(), dtype=np.float32).reshape(len(selected), -1)
