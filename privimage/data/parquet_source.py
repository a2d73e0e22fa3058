"""Labelled images in Parquet, in the Hugging Face convention, streamed in record batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from privimage.config import ParquetSource
from privimage.data.decode import open_image
from privimage.data.location import filesystem, is_remote, local_path, open_parquet_file, reading
from privimage.data.records import Source, SourceImage
from privimage.errors import DataError

__all__ = ["open_parquet"]

_BATCH_ROWS = 64  # bounds memory: at most so many encoded images are held at once
_BUFFER_BYTES = 1 << 20  # column chunks are streamed, not read whole: a row group may hold gigabytes of images


def open_parquet(config: ParquetSource) -> Source:
    """The images of a .parquet file, or of all of them in a folder in sorted order.

    The image column is a struct with `bytes` (and `path`), or plain binary. Class names come from the `huggingface`
    schema metadata (ClassLabel), or else from a JSON list under `label_names`; without either, the labels that occur
    become the classes, in sorted order. String labels are always class names themselves. A missing label is -1.
    Under `max_images` the rows are a random choice that depends on nothing but the two numbers of rows.

    Raises:
        DataError: nothing at the path, no Parquet, a column is missing or of the wrong type, the files disagree, or
            the source has fewer than two classes or no rows.
    """
    fs, files = _files(config.path)
    schemas = []
    num_rows = 0
    for file in files:
        with _parquet_file(fs, file) as parquet:
            schemas.append(parquet.schema_arrow)
            num_rows += parquet.metadata.num_rows
            _check_columns(file, parquet.schema_arrow, config)
    stated = {_stated_names(schema, config.label_column) for schema in schemas}
    if len(stated) > 1 or len({_holds_strings(schema, config.label_column) for schema in schemas}) > 1:
        raise DataError(f"The files of {config.path} name different classes or label types: give them as one data set.")
    names = stated.pop()
    numbers: dict[Any, int] | None = None
    if names is None or _holds_strings(schemas[0], config.label_column):
        values = _distinct(fs, files, config.label_column)
        names = tuple(str(value) for value in values)
        numbers = {value: number for number, value in enumerate(values)}
    return Source(
        origin=config.path,
        class_names=names,
        num_images=min(num_rows, config.max_images or num_rows),
        images=partial(_images, fs, files, config, numbers, _taken(num_rows, config.max_images)),
    )


def _files(path: str) -> tuple[Any, list[str]]:
    fs, root = filesystem(path)
    if not is_remote(path) and not local_path(path).exists():
        raise DataError(f"Nothing found at {path}: give a .parquet file, or a folder that holds some.")
    with reading(path):
        if fs.isfile(root):
            return fs, [root]
        files = sorted(
            name
            for name in fs.ls(root, detail=False)
            if name.endswith(".parquet") and not name.rpartition("/")[2].startswith((".", "_"))
        )
    if not files:
        raise DataError(f"{path} holds no .parquet files.")
    return fs, files


@contextmanager
def _parquet_file(fs: Any, path: str) -> Iterator[pq.ParquetFile]:
    with reading(path), open_parquet_file(fs, path) as file:
        try:
            with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as parquet:
                yield parquet
        except pa.ArrowException as error:
            raise DataError(f"{path} is no readable Parquet file ({error}).") from None


def _check_columns(file: str, schema: pa.Schema, config: ParquetSource) -> None:
    for name in (config.image_column, config.label_column):
        if name not in schema.names:
            raise DataError(f"{file} has no column {name!r}; it has {', '.join(schema.names)}.")
    image = schema.field(config.image_column).type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise DataError(f"Column {config.image_column!r} of {file} holds {image}, expected struct<bytes, path>.")
    label = _value_type(schema, config.label_column)
    if not (pa.types.is_integer(label) or _is_string(label)):
        raise DataError(f"Column {config.label_column!r} of {file} holds {label}, expected integers or strings.")


def _value_type(schema: pa.Schema, column: str) -> pa.DataType:
    kind = schema.field(column).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_strings(schema: pa.Schema, column: str) -> bool:
    return _is_string(_value_type(schema, column))


def _stated_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names that the schema's metadata states, if it does."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(column, {}).get("names") or json.loads(metadata.get(b"label_names", b"null"))
    except (ValueError, AttributeError):
        raise DataError("The Parquet metadata 'huggingface' or 'label_names' is not the JSON it should be.") from None
    return tuple(str(name) for name in names) if names else None


def _distinct(fs: Any, files: list[str], column: str) -> list[Any]:
    """All labels that occur, sorted; reads the label column only."""
    values: set[Any] = set()
    for file in files:
        with _parquet_file(fs, file) as parquet:
            for batch in parquet.iter_batches(columns=[column]):
                values.update(pc.unique(batch.column(0)).to_pylist())
    return sorted(values - {None})


def _taken(num_rows: int, max_images: int | None) -> NDArray[np.bool_] | None:
    """Which rows are taken; None for all. At random, because files are sorted by class, or count through the classes."""
    if max_images is None or max_images >= num_rows:
        return None
    taken = np.zeros(num_rows, dtype=np.bool_)
    taken[np.random.default_rng(0).permutation(num_rows)[:max_images]] = True
    return taken


def _images(
    fs: Any,
    files: list[str],
    config: ParquetSource,
    numbers: dict[Any, int] | None,
    taken: NDArray[np.bool_] | None,
) -> Iterator[SourceImage]:
    seen = 0
    for file in files:
        row = 0
        with _parquet_file(fs, file) as parquet:
            columns = [config.image_column, config.label_column]
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                labels = batch.column(config.label_column).to_pylist()
                for image, value in zip(batch.column(config.image_column), labels, strict=True):
                    seen, row = seen + 1, row + 1
                    if taken is not None and not taken[seen - 1]:
                        continue
                    data, path = _encoded(image.as_py())
                    place = path or f"{file.rpartition('/')[2]}, row {row - 1}"
                    label = numbers[value] if numbers and value is not None else value
                    yield SourceImage(load=partial(_load, data), label=-1 if label is None else label, path=place)


def _encoded(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, dict):
        return value["bytes"], value.get("path")
    return value, None


def _load(data: bytes | None) -> Image.Image:
    if data is None:
        raise DataError("the row holds no image bytes")
    return open_image(data)
