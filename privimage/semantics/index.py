"""The index of the public set: one row an image, in the order of the image table, which is sorted by category.

    index.parquet               id (row number in the image table), label (category), shard and row (where it lies)
    predictions-00000.parquet   id, label, top (predicted categories, best first), confidence (probability of the first),
    predictions-00001.parquet   embedding (float16), and features (float16) where class means of them are released; a
                                file for each file of the image table

Selecting reads the first file and nothing else. Sorted labels and numbers that count up take next to no space, so
that the index of 14 million images is a file of half a megabyte: a store on S3 hands it out whole, with its digest
checked. Row groups carry statistics; of those without a wanted category nothing is read. The predictions take hundreds
of bytes an image and lie apart for that reason: beside them in one file, as in version 1, all of them had to be
fetched and hashed before the first label was read.

The index says in its metadata which image table it was made of, and so does a selection from it: `require_table`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
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
from privimage.privacy.gradients import Precision
from privimage.semantics.backbone import Backbone, features_of
from privimage.semantics.classifier import ResNet, predict

__all__ = [
    "INDEX_FILE",
    "INDEX_GROUP",
    "ROW_ENCODING",
    "IndexWriter",
    "features_in",
    "index_schema",
    "open_index",
    "predictions_schema",
    "require_table",
    "rows_of_categories",
    "table_metadata",
    "write_index",
    "write_predictions",
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


def index_schema(category_names: Sequence[str], *, table_digest: str, num_images: int) -> pa.Schema:
    """Arrow schema of the index of the image table with this content digest and number of images."""
    return pa.schema(
        [("id", pa.int64()), ("label", pa.int32()), ("shard", pa.int32()), ("row", pa.int32())],
        metadata={"label_names": json.dumps(list(category_names)), **table_metadata(table_digest, num_images)},
    )


def _of_categories(embedding_size: int) -> list[tuple[str, pa.DataType]]:
    return [
        ("top", pa.list_(pa.int32())),
        ("confidence", pa.float32()),
        ("embedding", pa.list_(pa.float16(), embedding_size)),
    ]


def predictions_schema(embedding_size: int, num_features: int = 0) -> pa.Schema:
    """Arrow schema of the predictions: with what a classifier with embeddings of `embedding_size` sees (0 = the backbone is none),
    and so many features, if there are any."""
    return pa.schema(
        [
            ("id", pa.int64()),
            ("label", pa.int32()),
            *(_of_categories(embedding_size) if embedding_size else []),
            *([("features", pa.list_(pa.float16(), num_features))] if num_features else []),
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
    """Writes the index into a folder; a context manager. Holds at most one row group and one batch.

    Args:
        table_digest: content digest of the image table.
        shard_sizes: number of rows of each of its files.
    """

    def __init__(
        self, folder: Path, *, category_names: Sequence[str], table_digest: str, shard_sizes: Sequence[int]
    ) -> None:
        self.num_rows = 0
        self._starts = np.concatenate([[0], np.cumsum(shard_sizes, dtype=np.int64)])
        self._schema = index_schema(category_names, table_digest=table_digest, num_images=int(self._starts[-1]))
        self._file = _GroupedFile(folder / INDEX_FILE, self._schema, INDEX_GROUP, **ROW_ENCODING)

    def __enter__(self) -> Self:
        return self

    def add(self, ids: NDArray[np.int64], labels: NDArray[np.int32]) -> None:
        """Append the next images of the table.

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
        self._file.add(pa.record_batch([pa.array(column) for column in columns], schema=self._schema))
        self.num_rows = end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self.num_rows != self._starts[-1]:
            raise DataError(
                f"The index has {self.num_rows} rows, but the image table has {self._starts[-1]}: make the table again."
            )


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


def write_predictions(
    file: Path,
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]],
    model: Backbone,
    device: torch.device,
    *,
    with_features: bool = False,
    precision: Precision = "float32",
) -> None:
    """Stream (images, labels, ids) of one file of the image table through the backbone.

    Memory does not depend on the number of images: one row group and one batch are held.
    """
    classifier = model if isinstance(model, ResNet) else None
    schema = predictions_schema(
        classifier.embedding_size if classifier else 0, model.num_features if with_features else 0
    )
    with closing(_GroupedFile(file, schema, PREDICTIONS_GROUP, compression="zstd", use_dictionary=False)) as rows:
        for images, labels, ids in batches:
            columns = [pa.array(ids), pa.array(labels.astype(np.int32))]
            if classifier:
                columns += _seen(classifier, images, device)
            if with_features:
                features = features_of(model, torch.from_numpy(images), device, precision).astype(np.float16)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1]))
            rows.add(pa.record_batch(columns, schema=schema))


def _seen(classifier: ResNet, images: NDArray[np.uint8], device: torch.device) -> list[pa.Array]:
    """Columns of `_of_categories`."""
    logits, embeddings = predict(classifier, torch.from_numpy(images), device)
    probabilities = logits.softmax(1)
    top = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
    ends = np.arange(len(images) + 1, dtype=np.int32) * top.indices.shape[1]
    flat = pa.array(embeddings.numpy().astype(np.float16).ravel())
    return [
        pa.ListArray.from_arrays(pa.array(ends), pa.array(top.indices.numpy().astype(np.int32).ravel())),
        pa.array(top.values[:, 0].numpy()),
        pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
    ]


def features_in(file: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features, (images, features), and categories of the images in one file of predictions, a row group at a time.

    Raises:
        DataError: the file has no features.
    """
    with pq.ParquetFile(file) as parquet:
        if "features" not in parquet.schema_arrow.names:
            raise DataError(f"{file.name} has no features: make the index again, with selection.strategy images.")
        for batch in parquet.iter_batches(PREDICTIONS_GROUP, columns=["label", "features"]):
            rows = batch.column("features")
            flat = rows.flatten().to_numpy().astype(np.float32)
            yield flat.reshape(len(batch), -1), batch.column("label").to_numpy().astype(np.int64)


def write_index(
    folder: Path, predictions: Sequence[Path], *, category_names: Sequence[str], table_digest: str, num_images: int
) -> None:
    """Write the index from the predictions, one file of them for each file of the image table, in its order.

    Raises:
        DataError: the predictions are not those of all images of the table, in its order.
    """
    sizes = [pq.read_metadata(file).num_rows for file in predictions]
    if sum(sizes) != num_images:
        raise DataError(
            f"There are predictions for {sum(sizes)} images, but the image table has {num_images}: make the table again."
        )
    with IndexWriter(folder, category_names=category_names, table_digest=table_digest, shard_sizes=sizes) as index:
        for file in predictions:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=INDEX_GROUP, columns=["id", "label"]):
                    index.add(batch.column("id").to_numpy(), batch.column("label").to_numpy())


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
