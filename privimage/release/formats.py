"""A release's images in other people's layouts: an image folder, WebDataset shards, or the release itself."""

from __future__ import annotations

import io
import json
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from privimage.data.table import PUBLIC
from privimage.errors import DataError, InputError

__all__ = ["FORMATS", "export_images", "folder_names"]

SHARD_IMAGES = 10_000
_PLAIN = re.compile(r"\w(?:[\w .+-]{,62}\w)?", re.ASCII)
# What Windows takes for a device, with whatever ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One image as it lies in the table; `key` is its row number, padded so that names sort in the order of rows."""

    key: str
    label: int
    png: bytes
    public: bool
    probabilities: list[float] | None


def export_images(files: Mapping[str, bytes], layout: str, to: Path) -> int:
    """Write a release's images into the new or empty folder `to`, and return how many there are.

    Guarantee: `to` appears whole or not at all. PNGs are copied byte by byte, and labels keep their numbers. The same
    release gives the same bytes.

    Args:
        files: content of every file of the release, already verified.
        layout: one of FORMATS. `folder`: one folder per class, for torchvision's ImageFolder (a class without an image
            is an empty folder, for which it wants `allow_empty`). `webdataset`: tar shards of `<key>.png` and
            `<key>.cls`, and `<key>.json` where images have probabilities (in `folder`, all
            of them are in probabilities.json). `parquet`: the release's own files.

    Raises:
        InputError: `to` is not empty or cannot be written.
        DataError: synthetic.parquet is no image table of privimage, or a label has no class.
    """
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise InputError(f"{to} is not empty: name a folder that is, or that does not exist yet.")
    class_names, num_images = _facts(files["synthetic.parquet"])
    partial = to.absolute().parent / f".{to.name}-{secrets.token_hex(4)}.part"
    try:
        partial.mkdir(parents=True)
        FORMATS[layout](files, class_names, partial)
        partial.rename(to)
    except OSError as error:
        raise InputError(f"Cannot write {to} ({error}): name a folder with room that can be written.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return num_images


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Names of class folders whose alphabetical order is the order of labels, which is how ImageFolder numbers them.

    They are the class names where these sort so and suit every file system (no more than 64 plain characters, and no device
    of Windows); if not, all begin with their number.
    """
    plain = list(class_names) == sorted(class_names) and len({name.casefold() for name in class_names}) == len(
        class_names
    )
    if plain and all(_PLAIN.fullmatch(name) and not _DEVICE.fullmatch(name) for name in class_names):
        return list(class_names)
    digits = len(str(len(class_names) - 1))
    return [
        f"{number:0{digits}}-{re.sub('[^A-Za-z0-9_+-]+', '_', name)[:64]}" for number, name in enumerate(class_names)
    ]


def _to_folder(files: Mapping[str, bytes], class_names: Sequence[str], folder: Path) -> None:
    places = [folder / name for name in folder_names(class_names)]
    for place in places:
        place.mkdir()
    for sample in _samples(files["synthetic.parquet"], len(class_names)):
        (places[sample.label] / f"{sample.key}.png").write_bytes(sample.png)
    uncertain = {
        s.key: s.probabilities for s in _samples(files["synthetic.parquet"], len(class_names)) if s.probabilities
    }
    if uncertain:
        (folder / "probabilities.json").write_text(json.dumps(uncertain))
    _explain(files, class_names, folder)


def _to_webdataset(files: Mapping[str, bytes], class_names: Sequence[str], folder: Path) -> None:
    samples = _samples(files["synthetic.parquet"], len(class_names))
    sample = next(samples, None)
    shard = 0
    while sample is not None:
        with tarfile.open(folder / f"synthetic-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(SHARD_IMAGES):
                if sample is None:
                    break
                _add(tar, f"{sample.key}.png", sample.png)
                _add(tar, f"{sample.key}.cls", str(sample.label).encode())
                if sample.probabilities:
                    _add(tar, f"{sample.key}.json", json.dumps({"probabilities": sample.probabilities}).encode())
                sample = next(samples, None)
        shard += 1
    _explain(files, class_names, folder)


def _to_parquet(files: Mapping[str, bytes], class_names: Sequence[str], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


FORMATS: Mapping[str, Callable[[Mapping[str, bytes], Sequence[str], Path], None]] = {
    "parquet": _to_parquet,
    "folder": _to_folder,
    "webdataset": _to_webdataset,
}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without owner or time."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _explain(files: Mapping[str, bytes], class_names: Sequence[str], folder: Path) -> None:
    """What the images do not say: the promise that they come with, what the classes are called, and which of them, if any, are
    public ones and not synthetic."""
    (folder / "certificate.json").write_bytes(files["certificate.json"])
    (folder / "class_names.json").write_text(json.dumps(list(class_names), indent=1))
    if public := [sample.key for sample in _samples(files["synthetic.parquet"], len(class_names)) if sample.public]:
        (folder / "public_images.json").write_text(json.dumps(public, indent=1))


def _facts(table: bytes) -> tuple[list[str], int]:
    """Class names and number of images."""
    try:
        with pq.ParquetFile(pa.BufferReader(table)) as parquet:
            names = json.loads(parquet.schema_arrow.metadata[b"label_names"])
            return [str(name) for name in names], int(parquet.metadata.num_rows)
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise DataError(f"synthetic.parquet is no image table of privimage ({type(error).__name__}).") from error


def _samples(table: bytes, num_classes: int) -> Iterator[_Sample]:
    """All rows in their order; a thousand are held at a time."""
    with pq.ParquetFile(pa.BufferReader(table)) as parquet:
        digits = max(6, len(str(parquet.metadata.num_rows)))
        for batch in parquet.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                if not 0 <= row["label"] < num_classes:
                    raise DataError(f"Image {row['id']} has label {row['label']}, but there are {num_classes} classes.")
                yield _Sample(
                    key=f"{row['id']:0{digits}}",
                    label=row["label"],
                    png=row["image"]["bytes"],
                    public=row["image"]["path"] == PUBLIC,
                    probabilities=row.get("probabilities"),
                )
