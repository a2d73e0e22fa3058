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

from privimage.config.sources import ParquetSource
from privimage.data.class_names import composed
from privimage.data.location import open_parquet_file, reading
from privimage.data.parquet_files import parquet_files
from privimage.data.problems import UnusableImage, printable
from privimage.data.records import Source, SourceImage
from privimage.errors import DataError

__all__ = ["open_parquet"]

_BATCH_ROWS = 64  # bounds memory: at most so many encoded images are held at once
_BUFFER_BYTES = 1 << 20  # column chunks are streamed, not read whole: a row group may hold gigabytes of images


def open_parquet(config: ParquetSource) -> Source:
    """The images of a .parquet file, or of those in a folder that `parquet_files` finds, in sorted order.

    The image column is a struct with `bytes` (and `path`), or plain binary. Class names come from the `huggingface`
    schema metadata (ClassLabel), or else from a JSON list under `label_names`; without either, the labels that occur
    become the classes, in sorted order. String labels are always class names themselves. A missing label is -1; so is one
    that is blank, or below 0 where it would name its class.
    Under `max_images` the rows are a random choice that depends on nothing but the two numbers of rows.

    Raises:
        DataError: nothing at the path, no Parquet, a column is missing or of the wrong type, the files disagree, or
            the source has fewer than two classes or no rows.
    """
    fs, files = parquet_files(config.path, config.split)
    schemas = []
    num_rows = 0
    for file in files:
        with _parquet_file(fs, file, config.path) as parquet:
            schemas.append(parquet.schema_arrow)
            num_rows += parquet.metadata.num_rows
            _check_columns(parquet.schema_arrow, config)
    stated = {_stated_names(config.path, schema, config.label_column) for schema in schemas}
    if len(stated) > 1 or len({_holds_strings(schema, config.label_column) for schema in schemas}) > 1:
        raise DataError(f"The files of {config.path} name different classes or label types: give them as one data set.")
    names = stated.pop()
    numbers: dict[Any, int] | None = None
    if names is None or _holds_strings(schemas[0], config.label_column):
        values = _distinct(fs, files, config)
        names = tuple(composed(str(value)) for value in values)
        numbers = {value: number for number, value in enumerate(values)}
    return Source(
        origin=config.path,
        class_names=names,
        num_images=min(num_rows, config.max_images or num_rows),
        images=partial(_images, fs, files, config, numbers, _taken(num_rows, config.max_images)),
    )


@contextmanager
def _parquet_file(fs: Any, file: str, origin: str) -> Iterator[pq.ParquetFile]:
    """Opened; what goes wrong names `origin`, since the names of files of sensitive images are private."""
    with reading(origin), open_parquet_file(fs, file) as opened:
        try:
            with pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES) as parquet:
                yield parquet
        except pa.ArrowException as error:
            raise DataError(f"{origin} is no readable Parquet file, or a file in it is none ({error}).") from None


def _check_columns(schema: pa.Schema, config: ParquetSource) -> None:
    for name in (config.image_column, config.label_column):
        if name not in schema.names:
            raise DataError(f"{config.path} has no column {name!r}; it has {', '.join(schema.names)}.")
    image = schema.field(config.image_column).type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image) or pa.types.is_binary_view(image)):
        raise DataError(f"Column {config.image_column!r} of {config.path} holds {image}, expected struct<bytes, path>.")
    label = _value_type(schema, config.label_column)
    if not (pa.types.is_integer(label) or _is_string(label)):
        raise DataError(f"Column {config.label_column!r} of {config.path} holds {label}, expected integers or strings.")


def _value_type(schema: pa.Schema, column: str) -> pa.DataType:
    kind = schema.field(column).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_strings(schema: pa.Schema, column: str) -> bool:
    return _is_string(_value_type(schema, column))


def _stated_names(origin: str, schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names that the schema's metadata states, if it does."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(column, {}).get("names") or json.loads(metadata.get(b"label_names", b"null"))
    except (ValueError, AttributeError):
        raise DataError("The Parquet metadata 'huggingface' or 'label_names' is not the JSON it should be.") from None
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
        # As cards of Hugging Face spell a list of names: {"0": ..., "1": ...}.
        names = [names[str(number)] for number in range(len(names))]
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"The class names in the metadata of {origin} are no list of names: write them as a JSON list.")
    return tuple(composed(str(name)) for name in names)


def _distinct(fs: Any, files: list[str], config: ParquetSource) -> list[Any]:
    """All labels that occur, sorted, but those that `_is_missing`; reads the label column only."""
    values: set[Any] = set()
    for file in files:
        with _parquet_file(fs, file, config.path) as parquet:
            for batch in parquet.iter_batches(columns=[config.label_column]):
                values.update(pc.unique(_plain(batch.column(0))).to_pylist())
    return sorted(value for value in values if not _is_missing(value))


def _is_missing(value: str | int | None) -> bool:
    """Whether a label that names its class says that there is none: null, blank, or below 0, as Hugging Face marks test sets."""
    return value is None or (not value.strip() if isinstance(value, str) else value < 0)


def _plain(column: pa.Array) -> pa.Array:
    """Arrow counts no distinct views: as plain strings."""
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


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
        with _parquet_file(fs, file, config.path) as parquet:
            columns = [config.image_column, config.label_column]
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                labels = batch.column(config.label_column).to_pylist()
                for image, value in zip(batch.column(config.image_column), labels, strict=True):
                    seen, row = seen + 1, row + 1
                    if taken is not None and not taken[seen - 1]:
                        continue
                    data, path = _encoded(image.as_py())
                    place = path or f"{file.rpartition('/')[2]}, row {row - 1}"
                    label = value if numbers is None else numbers.get(value)
                    yield SourceImage(
                        read=partial(_read, data),
                        label=-1 if label is None else label,
                        path=printable(place),
                        bits=config.bits,
                    )


def _encoded(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, dict):
        return value["bytes"], value.get("path")
    return value, None


def _read(data: bytes | None) -> bytes:
    if data is None:
        raise UnusableImage(
            "the row holds no image bytes", "Write the files' content into the table, or remove these rows."
        )
    return data
