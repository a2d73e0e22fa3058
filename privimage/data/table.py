"""The canonical image table: Parquet shards of PNGs that `datasets`, DuckDB and Polars read as well.

Columns: `id` int64 (row number over all shards, from 0), `label` int64, `image` struct<bytes: PNG, path>; where each image
has probabilities of all classes, `probabilities` too, a list of float32 in the order of the class numbers. All images
have the same shape, which the schema metadata states beside the class names.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from privimage.config.images import ImageConfig
from privimage.data.facts import TableFacts
from privimage.errors import DataError

__all__ = [
    "MEMORY_LIMIT",
    "ROW_GROUP_ROWS",
    "TableFacts",
    "TableWriter",
    "decode_png",
    "encode_png",
    "iterate_images",
    "read_images",
    "read_is_public",
    "read_probabilities",
]

ROW_GROUP_ROWS = 1000
MEMORY_LIMIT = 4 * 2**30
"""Bytes of pixels that `read_images` keeps in memory where it may also keep them in a file."""

_PARTIAL = ".part"
# Of a PNG file: signature and header; length and name of a chunk; its checksum, and the empty chunk at the end.
_HEADER, _CHUNK, _END = 33, 8, 16

T = TypeVar("T")


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of a (channels, height, width) uint8 image with 1 or 3 channels; fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """The (channels, height, width) uint8 image that `encode_png` wrote."""
    pixels = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


PUBLIC = "public"
"""The `path` of a public image in a table of synthetic ones; that of a generated one is empty."""


class TableWriter:
    """Writes a table into a folder, replacing an earlier one of the same prefix; its rows are numbered from `first_id`.

    A context manager: the shards get their final names when it ends well, and are removed when it does not, so that
    nothing half-written looks complete. After it, `files` holds the shards' names and `num_images` their rows.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        class_names: Sequence[str],
        image: ImageConfig,
        shard_rows: int = 50_000,
        first_id: int = 0,
        *,
        with_probabilities: bool = False,
    ) -> None:
        self.files: list[str] = []
        self.num_images = 0
        self._folder = folder
        self._prefix = prefix
        self._shape = (image.channels, image.resolution, image.resolution)
        self._schema = _schema(class_names, self._shape, with_probabilities=with_probabilities)
        self._shard_rows = shard_rows
        self._first_id = first_id
        self._rows: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove()
        self._open_shard()
        return self

    def add(
        self,
        pixels: NDArray[np.uint8],
        label: int,
        path: str | None = None,
        probabilities: NDArray[np.float32] | None = None,
    ) -> None:
        """Append one canonical image of shape (channels, resolution, resolution); with probabilities, (classes,), if the table has
        them."""
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise DataError(f"Expected a uint8 image of shape {self._shape}, found {pixels.dtype} {pixels.shape}.")
        self.add_png(encode_png(pixels), label, path, probabilities)

    def add_png(
        self, png: bytes, label: int, path: str | None = None, probabilities: NDArray[np.float32] | None = None
    ) -> None:
        """Append one image that `encode_png` has encoded already."""
        if self.num_images and self.num_images % self._shard_rows == 0:
            self._close_shard()
            self._open_shard()
        row = {"id": self._first_id + self.num_images, "label": label, "image": {"bytes": png, "path": path}}
        self._rows.append(row if probabilities is None else {**row, "probabilities": probabilities})
        self.num_images += 1
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
            for name in self.files:
                (self._folder / (name + _PARTIAL)).rename(self._folder / name)
            return
        if self._writer is not None:
            self._writer.close()
        self._remove()
        self.files = []

    def _open_shard(self) -> None:
        name = f"{self._prefix}-{len(self.files):05d}.parquet"
        self._writer = pq.ParquetWriter(
            self._folder / (name + _PARTIAL),
            self._schema,
            compression={"id": "zstd", "label": "zstd", "image.bytes": "none", "image.path": "zstd"},
            use_dictionary=["label"],
            write_statistics=["id", "label"],
        )
        self.files.append(name)

    def _close_shard(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if self._rows and self._writer is not None:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _remove(self) -> None:
        for pattern in (f"{self._prefix}-*.parquet", f"{self._prefix}-*.parquet{_PARTIAL}"):
            for file in self._folder.glob(pattern):
                file.unlink()


def read_images(
    files: Sequence[Path],
    rows: NDArray[np.int64] | None = None,
    *,
    spill: Path | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, channels, height, width) and labels (N,) of a table, or of its given row numbers, in that order.

    Only the row groups that hold one of the rows are read; a row may be asked for more than once. Each image is
    decoded once.

    Args:
        spill: a folder, as protected as the images have to be. Pixels of more than `memory_limit` bytes then lie in a
            file without a name there, mapped into memory, which goes when the array does. Its content is the same.

    Raises:
        DataError: a file is missing or no image table, a row number is out of range, or `spill` has no room.
    """
    groups = [(file, group, count) for file in files for group, count in enumerate(_group_rows(file))]
    starts = np.concatenate([[0], np.cumsum([count for *_, count in groups], dtype=np.int64)])
    wanted = np.arange(starts[-1]) if rows is None else np.asarray(rows, dtype=np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= starts[-1]):
        raise DataError(f"Rows {wanted.min()} to {wanted.max()} were asked for, but the table holds {starts[-1]} rows.")
    images = _empty((len(wanted), *_image_shape(files)), spill, memory_limit)
    labels = np.empty(len(wanted), dtype=np.int64)
    owner = np.searchsorted(starts, wanted, side="right") - 1
    by_group = np.argsort(owner, kind="stable")
    for index, places in zip(*_runs(owner, by_group), strict=True):
        file, group, _ = groups[index]
        with _open_table(file) as parquet:
            table = parquet.read_row_group(group, columns=["label", "image"])
        local = wanted[places] - starts[index]
        labels[places] = table.column("label").to_numpy()[local]
        encoded = table.column("image").combine_chunks().field("bytes").take(pa.array(local))
        images[places] = _decode_all(encoded.to_pylist(), images.shape[1:])
    return images, labels


def read_is_public(files: Sequence[Path]) -> NDArray[np.bool_]:
    """Which rows of a table of released images are public ones, unchanged: bool (N,)."""
    found = []
    for file in files:
        with _open_table(file) as parquet:
            paths = parquet.read(columns=["image.path"])["image"].combine_chunks().field("path")
        found.append(paths.fill_null("").to_numpy(zero_copy_only=False) == PUBLIC)
    return np.concatenate(found)


def read_probabilities(files: Sequence[Path]) -> NDArray[np.float32] | None:
    """Probabilities of the classes, (N, classes), of a table that has them; None of one that has not."""
    found = []
    for file in files:
        with _open_table(file) as parquet:
            if "probabilities" not in parquet.schema_arrow.names:
                return None
            rows = parquet.read(columns=["probabilities"])["probabilities"].combine_chunks()
        found.append(rows.flatten().to_numpy().reshape(len(rows), -1))
    return np.concatenate(found).copy()


def iterate_images(
    files: Sequence[Path], batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]:
    """Images, labels and ids in row order, at most `batch_size` at a time; the last batch of a shard may be smaller.

    While the caller works on a batch, a thread decodes the next: two batches are held at most.

    Raises:
        DataError: a file is missing or no image table.
    """
    yield from _one_ahead(_batches(files, batch_size))


def _batches(
    files: Sequence[Path], batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]:
    shape = _image_shape(files)
    for file in files:
        with _open_table(file) as parquet:
            for batch in parquet.iter_batches(batch_size=batch_size, columns=["id", "label", "image"]):
                images = _decode_all(batch.column("image").field("bytes").to_pylist(), shape)
                yield images, batch.column("label").to_numpy(), batch.column("id").to_numpy()


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _decode_all(encoded: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The images of PNG files that `encode_png` wrote, (N, *shape).

    Where a file is as `encode_png` writes small images, with all pixels in one chunk, the chunk goes to Pillow's
    decoder at once: for images so small, taking note of what a file holds takes longer than decoding it.
    """
    header = encode_png(np.zeros(shape, dtype=np.uint8))[:_HEADER]
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    start = _HEADER + _CHUNK
    images = np.empty((len(encoded), *shape), dtype=np.uint8)
    for place, png in enumerate(encoded):
        chunk = (len(png) - start - _END).to_bytes(4, "big", signed=True) + b"IDAT"
        if png[:start] == header + chunk:
            pixels = Image.frombytes(mode, (width, height), png[start:-_END], "zip", mode, False)
            images[place] = np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)
        else:
            images[place] = decode_png(png)
    return images


def _empty(shape: tuple[int, ...], spill: Path | None, memory_limit: int) -> NDArray[np.uint8]:
    size = math.prod(shape)
    if spill is None or size <= memory_limit:
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(dir=spill) as file:
        if hasattr(os, "posix_fallocate"):
            # Taken now, because a disk that turns out to be full while mapped memory is written kills the process.
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise DataError(
                    f"{spill} has no room for {size / 2**30:.1f} GiB of decoded images ({error.strerror}): free some."
                ) from None
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


def _schema(class_names: Sequence[str], shape: tuple[int, int, int], *, with_probabilities: bool = False) -> pa.Schema:
    features: dict[str, dict[str, Any]] = {
        "id": {"dtype": "int64", "_type": "Value"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
        "image": {"_type": "Image"},
    }
    if with_probabilities:
        each = {"dtype": "float32", "_type": "Value"}
        features["probabilities"] = {"feature": each, "length": len(class_names), "_type": "Sequence"}
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "label_names": json.dumps(list(class_names)),
        "image_shape": json.dumps(shape),
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [pa.field("id", pa.int64()), pa.field("label", pa.int64()), pa.field("image", image)]
    if with_probabilities:
        fields.append(pa.field("probabilities", pa.list_(pa.float32(), len(class_names))))
    return pa.schema(fields, metadata=metadata)


def _open_table(file: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is missing or no Parquet ({type(error).__name__}): make the table again.") from None
    if b"image_shape" not in (parquet.schema_arrow.metadata or {}):
        parquet.close()
        raise DataError(f"{file} is Parquet, but no canonical image table: admit the images first.")
    return parquet


def _group_rows(file: Path) -> list[int]:
    with _open_table(file) as parquet:
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def _image_shape(files: Sequence[Path]) -> tuple[int, ...]:
    if not files:
        raise DataError("No files of an image table were given.")
    with _open_table(files[0]) as parquet:
        return tuple(json.loads(parquet.schema_arrow.metadata[b"image_shape"]))


def _runs(owner: NDArray[np.int64], by_group: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The groups that own a row, and for each of them the places of its rows."""
    groups, first = np.unique(owner[by_group], return_index=True)
    return groups, np.split(by_group, first[1:]) if len(groups) else []
