"""A folder of class folders: on this machine, in an S3 bucket, or in a zip file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError

from privimage.config.sources import FolderSource
from privimage.data.class_names import composed
from privimage.data.clutter import is_about_the_set
from privimage.data.listing import File, Listing
from privimage.data.local_files import walk
from privimage.data.location import filesystem, is_remote, local_path, reading
from privimage.data.problems import UnusableImage, printable
from privimage.data.records import Source, SourceImage, refused_file
from privimage.data.structure import check_structure, only_split, unwrapped
from privimage.data.zip_listing import list_zip
from privimage.errors import DataError

__all__ = ["open_folder"]

# RuntimeError is how zipfile refuses what it cannot decrypt or unpack.
_READING_ERRORS = (OSError, BotoCoreError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)

_BESIDE = ("it lies beside the class folders", "Move these files into the folder of their class, or remove them.")
_SPECIAL = (
    "it is no file: a named pipe, a device, or a link that leads nowhere",
    "Remove these, or put the files there.",
)
_CIRCLE = ("a link to a folder above itself, whose images would count again and again", "Remove these links.")
_MARKER = ("it has the name of a folder, and content", "Rename these objects, or remove them.")


def open_folder(config: FolderSource) -> Source:
    """The images of a folder (or zip) with one folder per class; class names and images in sorted order.

    Every file inside a class folder, at any depth, counts as an image, and so does one beside the class folders, which is
    refused, unless it is a text about the set. Nothing else is left out but hidden files and what systems leave behind (see
    `clutter`). A class folder without images stays a class. A zip whose only top-level folder holds the class folders is
    understood. Names of classes are brought into Unicode's composed form. With `split` only the folder of that name is read.

    Raises:
        DataError: nothing at the path, no class folders, fewer than two, no images, class folders that look like parts of a
            data set, names that cannot be published, or a zip that is damaged, encrypted, or expands beyond all proportion.
    """
    listing = _list(config.path)
    if config.split is not None:
        listing = only_split(config.path, listing, config.split)
    check_structure(config.path, listing)
    folders = sorted(listing.tops(), key=lambda name: (composed(name), name))
    if listing.unclear & set(folders) or (listing.unclear and not folders):
        raise DataError(
            f"{config.path} does not say in which encoding the names of its folders are, and they would be published garbled: make "
            "the zip anew with names in UTF-8, or unpack it and give the folder."
        )
    if not folders:
        raise DataError(f"{config.path} has no class folders: put the images of each class into a folder of its name.")
    if any("\\" in name for name in folders):
        raise DataError(f"{config.path} has class folders with a backslash in their name: separate folders by slashes.")
    labels = {name: label for label, name in enumerate(folders)}
    good: list[tuple[int, str, File]] = []
    refused: list[tuple[str, tuple[str, str]]] = []
    for file in listing.files:
        top, _, below = file.path.partition("/")
        if file.refused:
            refused.append((file.path, file.refused))
        elif below:
            good.append((labels[top], file.path, file))
        elif not is_about_the_set(file.path):
            refused.append((file.path, _BESIDE))
    good.sort(key=lambda found: found[:2])
    refused.sort()

    def images() -> Iterator[SourceImage]:
        for label, path, file in good:
            yield SourceImage(read=partial(_read, file.read), label=label, path=printable(path), bits=config.bits)
        for path, why in refused:
            yield refused_file(path, *why)

    return Source(
        origin=config.path,
        class_names=tuple(composed(name) for name in folders),
        num_images=len(good) + len(refused),
        images=images,
        remote_files=is_remote(config.path) and not config.path.lower().endswith(".zip"),
    )


def _read(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except _READING_ERRORS as error:
        raise UnusableImage(f"the file cannot be read ({type(error).__name__})") from None


def _list(path: str) -> Listing:
    if path.lower().endswith(".zip"):
        return unwrapped(list_zip(path))
    return _list_remote(path) if is_remote(path) else _list_local(path)


def _list_local(path: str) -> Listing:
    root = local_path(path)
    if not root.is_dir():
        raise DataError(f"No folder at {path}: give a folder (or a .zip file) that holds one folder per class.")
    why_not = {"file": None, "special": _SPECIAL, "circle": _CIRCLE}
    with reading(path):
        found = list(walk(root, _fail))
    return Listing.of(
        [entry.path for entry in found if entry.kind == "folder"],
        [
            File(path=entry.path, read=(root / entry.path).read_bytes, refused=why_not[entry.kind])
            for entry in found
            if entry.kind != "folder"
        ],
    )


def _fail(error: OSError) -> None:
    raise error


def _list_remote(path: str) -> Listing:
    fs, root = filesystem(path)
    with reading(path):
        found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
        # On S3 a folder would hide an object of the same name, and its markers are objects anyway.
        every = {} if path.startswith("s3://") else fs.find(root, withdirs=True, detail=True)
    if not found and not every:
        raise DataError(f"Nothing found at {path}: check the path, the bucket and its endpoint.")
    folders = [_below(root, name) for name, entry in every.items() if entry["type"] == "directory"]
    files: list[File] = []
    for name, entry in found.items():
        # Object stores have no folders; a marker, an empty object named `cats/`, stands for an empty one.
        is_marker = name.endswith("/")
        if is_marker and not entry.get("size"):
            folders.append(_below(root, name))
        else:
            refused = _MARKER if is_marker else None
            files.append(File(path=_below(root, name), read=partial(_fetch, fs, name), refused=refused))
    return Listing.of(folders, files)


def _below(root: str, name: str) -> str:
    return name.removeprefix(root).removeprefix("/")


def _fetch(fs: Any, name: str) -> bytes:
    return bytes(fs.cat_file(name))
