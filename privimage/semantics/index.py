"""The index of the public set: a narrow Parquet file beside the image shards, one row an image, sorted by category.

Columns: id (row number in the image table), label (category), top (predicted categories, best first), confidence
(probability of the first), embedding (float16), shard and row (where the image lies). Selecting reads label and id
of the row groups whose statistics match, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from privimage.semantics.classifier import ResNet, predict

__all__ = ["index_schema", "rows_of_categories", "write_index"]

TOP = 10


def index_schema(embedding_size: int, category_names: Sequence[str]) -> pa.Schema:
    """Arrow schema of the index for embeddings of `embedding_size`."""
    return pa.schema(
        [
            ("id", pa.int64()),
            ("label", pa.int32()),
            ("top", pa.list_(pa.int32())),
            ("confidence", pa.float32()),
            ("embedding", pa.list_(pa.float16(), embedding_size)),
            ("shard", pa.int32()),
            ("row", pa.int32()),
        ],
        metadata={"label_names": json.dumps(list(category_names))},
    )


def write_index(
    path: Path,
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]],
    model: ResNet,
    *,
    category_names: Sequence[str],
    shard_sizes: Sequence[int],
    device: torch.device,
) -> int:
    """Stream (images, labels, ids) of the image table, in table order, through the classifier into `path`.

    Memory is bounded by one batch. The table is sorted by label, hence so is the index.

    Returns:
        The number of rows.
    """
    schema = index_schema(model.embedding_size, category_names)
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    count = 0
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=["label", "shard"], write_page_index=True
    ) as writer:
        for images, labels, ids in batches:
            logits, embeddings = predict(model, torch.from_numpy(images), device)
            probabilities = logits.softmax(1)
            top = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
            shard = np.searchsorted(starts, ids, side="right") - 1
            flat = pa.array(embeddings.numpy().astype(np.float16).ravel())
            writer.write_batch(
                pa.record_batch(
                    [
                        pa.array(ids),
                        pa.array(labels.astype(np.int32)),
                        pa.array(list(top.indices.numpy().astype(np.int32)), type=pa.list_(pa.int32())),
                        pa.array(top.values[:, 0].numpy()),
                        pa.FixedSizeListArray.from_arrays(flat, model.embedding_size),
                        pa.array(shard.astype(np.int32)),
                        pa.array((ids - starts[shard]).astype(np.int32)),
                    ],
                    schema=schema,
                )
            )
            count += len(ids)
    return count


def rows_of_categories(files: Sequence[Path], categories: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels of all public images of `categories`, by predicate push-down, in table order."""
    index = ds.dataset([str(file) for file in files], format="parquet")
    found = index.to_table(columns=["id", "label"], filter=ds.field("label").isin(list(categories)))
    return found["id"].to_numpy(), found["label"].to_numpy().astype(np.int64)
