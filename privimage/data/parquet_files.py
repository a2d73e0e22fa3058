"""Which of the files in a folder are the Parquet files of a source: those of one split, and none that is overlooked."""

from __future__ import annotations

import re
from typing import Any

from privimage.data.location import filesystem, is_remote, local_path, reading
from privimage.data.structure import split_word
from privimage.errors import DataError

__all__ = ["parquet_files"]

_ENDINGS = (".parquet", ".parq", ".pq")
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_DATA = "data"
_ALL = "all"


def parquet_files(path: str, split: str | None) -> tuple[Any, list[str]]:
    """The file system, and a .parquet file, or those in a folder, sorted; of a Hugging Face repository those in `data`.

    Files whose name begins with a dot or an underscore are none of a table, by the convention of all that write tables.

    Args:
        split: read only the files of this split; `all` reads all, also those that look like several splits.

    Raises:
        DataError: nothing there; files that look like several splits, and no `split`; or files in folders below, which would
            be overlooked. File names are not in the message.
    """
    fs, root = filesystem(path)
    if not is_remote(path) and not (local_path(path).is_file() or local_path(path).is_dir()):
        raise DataError(f"Nothing found at {path}: give a .parquet file, or a folder that holds some.")
    with reading(path):
        if fs.isfile(root):
            return fs, [root]
        everything = fs.find(root)
    if not everything and is_remote(path):
        raise DataError(f"Nothing found at {path}: check the path, the bucket and its endpoint.")
    found = sorted(name for name in everything if _is_table(name.removeprefix(root)))
    if not is_remote(path) and not all(local_path(name).is_file() for name in found):
        raise DataError(
            f"{path} holds a .parquet entry that is no file: a named pipe, or a link that leads nowhere; remove it."
        )
    depth = {name: name.removeprefix(root).strip("/").split("/")[:-1] for name in found}
    if not found:
        raise DataError(f"{path} holds no .parquet files.")
    if all(folders == [_DATA] for folders in depth.values()):
        depth = {name: [] for name in found}
    if any(depth.values()):
        partitions = (
            " Folders named `column=value` are not read: write that column into the files." if "=" in str(depth) else ""
        )
        raise DataError(
            f"{path} holds .parquet files in folders below, and only those in it itself, or all of them in its folder `data`, are "
            f"read: give the folder that holds the files of one data set.{partitions}"
        )
    return fs, _of_split(path, found, split)


def _of_split(path: str, files: list[str], split: str | None) -> list[str]:
    splits = {name: _split_of(name.rpartition("/")[2]) for name in files}
    if split == _ALL:
        return files
    if split is None:
        if len(set(splits.values())) > 1:
            raise DataError(
                f"{path} holds .parquet files that look like several splits: say in `split` which is meant, such as train, or all."
            )
        return files
    wanted = split_word(split) or split
    chosen = [name for name in files if splits[name] == wanted]
    if not chosen:
        raise DataError(f"{path} holds no .parquet files of the split {split!r}.")
    return chosen


def _split_of(name: str) -> str | None:
    """The split that a file's name tells, in one of the ways of Hugging Face: train-00000-of-00002, or a word in it."""
    stem = name.rpartition(".")[0]
    if shard := _SHARD.match(stem):
        return split_word(shard["split"]) or shard["split"]
    words = {word for part in re.split(r"[\W\d_]+", stem) if (word := split_word(part))}
    return words.pop() if len(words) == 1 else None


def _is_table(name: str) -> bool:
    return name.casefold().endswith(_ENDINGS) and not any(
        part.startswith((".", "_")) for part in name.strip("/").split("/")
    )
