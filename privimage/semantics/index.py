"""The index of the public set: one row an image, in the order of the image table, which is sorted by category.

    index.parquet               id (row number in the image table), label (category), shard and row (where it lies)
    predictions-00000.parquet   id, top (predicted categories, best first), confidence (probability of the first),
    predictions-00001.parquet   embedding (float16); a million rows a file

Selecting reads the first file and nothing else. Sorted labels and numbers that count up take next to no space, so
that the index of 14 million images is a file of half a megabyte: a store on S3 hands it out whole, with its digest
checked. Row groups carry statistics; of those without a wanted category nothing is read. The predictions take hundreds
of bytes an image and lie apart for that reason: beside them in one file, as in version 1, all of them had to be
fetched and hashed before the first label was read.

The index says in its metadata which image table it was made of, and so does a selection from it: `require_table`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from privimage.errors import DataError
from privimage.semantics.classifier import ResNet, predict

__all__ = [
    "INDEX_FILE",
    "INDEX_GROUP",
    "ROW_ENCODING",
    "IndexWriter",
    "index_schema",
    "open_index",
    "predictions_schema",
    "require_table",
    "rows_of_categories",
    "table_metadata",
    "write_index",
]

INDEX_FILE = "index.parquet"
TOP = 10
INDEX_GROUP = 65_536
"""Rows of a row group of the index: the writer holds so many, and a reader skips so many."""

ROW_ENCODING: Mapping[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["label", "shard", "class"],
    "column_encoding": {"id": "DELTA_BINARY_PACKED", "row": "DELTA_BINARY_PACKED"},
}
"""How pyarrow is to write rows of the index, and of selections from it: what repeats and what counts up, as such."""

PREDICTIONS_GROUP = 8_192
PREDICTIONS_SHARD = 1_000_000


def index_schema(category_names: Sequence[str], *, table_digest: str, num_images: int) -> pa.Schema:
    """Arrow schema of the index of the image table with this content digest and number of images."""
    return pa.schema(
        [("id", pa.int64()), ("label", pa.int32()), ("shard", pa.int32()), ("row", pa.int32())],
        metadata={"label_names": json.dumps(list(category_names)), **table_metadata(table_digest, num_images)},
    )


def predictions_schema(embedding_size: int) -> pa.Schema:
    """Arrow schema of the predictions, with embeddings of `embedding_size`."""
    return pa.schema(
        [
            ("id", pa.int64()),
            ("top", pa.list_(pa.int32())),
            ("confidence", pa.float32()),
            ("embedding", pa.list_(pa.float16(), embedding_size)),
        ]
    )


def table_metadata(digest: str, num_images: int) -> dict[str, str]:
    """Schema metadata that names an image table, for `require_table`."""
    return {"image_table": json.dumps({"digest": digest, "num_images": num_images})}


def require_table(what: str, schema: pa.Schema, *, digest: str, num_images: int) -> None:
    """Check that a file with this schema was made of the image table with this content digest and number of images.

    Raises:
        DataError: it names another table, another number of images, or none.
    """
    stated = (schema.metadata or {}).get(b"image_table")
    if stated is None:
        raise DataError(f"{what} does not say which image table it was made of: make it again with this version.")
    found = json.loads(stated)
    if found != {"digest": digest, "num_images": num_images}:
        raise DataError(
            f"{what} was made of image table {found['digest'][:12]} with {found['num_images']} images, expected "
            f"{digest[:12]} with {num_images}: remove it and run stage `index` again."
        )


class IndexWriter:
    """Writes the files of an index into a folder; a context manager.

    Holds at most one row group of each kind and one batch, however many rows there are.

    Args:
        table_digest: content digest of the image table.
        shard_sizes: number of rows of each of its files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        category_names: Sequence[str],
        table_digest: str,
        shard_sizes: Sequence[int],
        embedding_size: int,
    ) -> None:
        self.num_rows = 0
        self._folder = folder
        self._starts = np.concatenate([[0], np.cumsum(shard_sizes, dtype=np.int64)])
        self._schema = index_schema(category_names, table_digest=table_digest, num_images=int(self._starts[-1]))
        self._predictions_schema = predictions_schema(embedding_size)
        self._index = _GroupedFile(
            folder / INDEX_FILE,
            self._schema,
            INDEX_GROUP,
            **ROW_ENCODING,
        )
        self._predictions: _GroupedFile | None = None
        self._num_predictions = 0

    def __enter__(self) -> Self:
        return self

    def add(
        self,
        ids: NDArray[np.int64],
        labels: NDArray[np.int64],
        top: NDArray[np.int64],
        confidence: NDArray[np.float32],
        embeddings: NDArray[np.float32],
    ) -> None:
        """Append the next images of the table: `top` is (N, up to 10), `embeddings` (N, embedding_size).

        Raises:
            DataError: the ids do not go on where the last ones ended, or go beyond the table.
        """
        end = self.num_rows + len(ids)
        if not np.array_equal(ids, np.arange(self.num_rows, end)) or end > self._starts[-1]:
            raise DataError(
                f"The image table goes on with {len(ids)} rows after row {self.num_rows}, whose numbers are not the next "
                f"of {self._starts[-1]}: make the table again."
            )
        shard = np.searchsorted(self._starts, ids, side="right") - 1
        columns = [ids, labels.astype(np.int32), shard.astype(np.int32), (ids - self._starts[shard]).astype(np.int32)]
        self._index.add(pa.record_batch([pa.array(column) for column in columns], schema=self._schema))
        ends = np.arange(len(top) + 1, dtype=np.int32) * top.shape[1]
        batch = [
            pa.array(ids),
            pa.ListArray.from_arrays(pa.array(ends), pa.array(top.astype(np.int32).ravel())),
            pa.array(confidence),
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.astype(np.float16).ravel()), embeddings.shape[1]),
        ]
        self._predictions_file().add(pa.record_batch(batch, schema=self._predictions_schema))
        self.num_rows = end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._index.close()
        if self._predictions is not None:
            self._predictions.close()
        if kind is None and self.num_rows != self._starts[-1]:
            raise DataError(
                f"The index has {self.num_rows} rows, but the image table has {self._starts[-1]}: make the table again."
            )

    def _predictions_file(self) -> _GroupedFile:
        if self._predictions is not None and self._predictions.num_rows < PREDICTIONS_SHARD:
            return self._predictions
        if self._predictions is not None:
            self._predictions.close()
        path = self._folder / f"predictions-{self._num_predictions:05d}.parquet"
        self._num_predictions += 1
        self._predictions = _GroupedFile(
            path, self._predictions_schema, PREDICTIONS_GROUP, compression="zstd", use_dictionary=False
        )
        return self._predictions


class _GroupedFile:
    """A Parquet file whose row groups have `group_rows` rows and at most one batch more, whatever the batches are."""

    def __init__(self, path: Path, schema: pa.Schema, group_rows: int, **options: Any) -> None:
        self.num_rows = 0
        self._group_rows = group_rows
        self._held: list[pa.RecordBatch] = []
        self._num_held = 0
        self._writer = pq.ParquetWriter(path, schema, write_page_index=True, **options)

    def add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._num_held += batch.num_rows
        self.num_rows += batch.num_rows
        if self._num_held >= self._group_rows:
            self._write()

    def close(self) -> None:
        if self._held:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=self._num_held)
        self._held, self._num_held = [], 0


def write_index(
    folder: Path,
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]],
    model: ResNet,
    *,
    category_names: Sequence[str],
    table_digest: str,
    shard_sizes: Sequence[int],
    device: torch.device,
) -> int:
    """Stream (images, labels, ids) of the image table, in table order, through the classifier into `folder`.

    Memory does not depend on the number of images: see `IndexWriter`, whose arguments these are.

    Returns:
        The number of rows.

    Raises:
        DataError: the batches are not all rows of the table, in its order.
    """
    with IndexWriter(
        folder,
        category_names=category_names,
        table_digest=table_digest,
        shard_sizes=shard_sizes,
        embedding_size=model.embedding_size,
    ) as index:
        for images, labels, ids in batches:
            logits, embeddings = predict(model, torch.from_numpy(images), device)
            probabilities = logits.softmax(1)
            top = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
            index.add(ids, labels, top.indices.numpy(), top.values[:, 0].numpy(), embeddings.numpy())
    return index.num_rows


def open_index(path: str | Path, filesystem: Any = None) -> ds.Dataset:
    """The index as an Arrow dataset; `filesystem` is pyarrow's, such as `Store.arrow_filesystem` gives it.

    Raises:
        DataError: the file is missing or no index.
    """
    try:
        index = ds.dataset(str(path), format="parquet", filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is missing or no Parquet ({type(error).__name__}): make the index again.") from None
    if index.schema.names != ["id", "label", "shard", "row"]:
        raise DataError(f"{path} has columns {index.schema.names}, and not those of an index: make the index again.")
    return index


def rows_of_categories(index: ds.Dataset, categories: Sequence[int]) -> pa.Table:
    """All rows of the index with one of `categories`, in table order, by predicate push-down."""
    return index.to_table(filter=ds.field("label").isin(list(categories)))
