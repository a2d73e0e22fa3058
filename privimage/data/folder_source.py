"""A folder of class folders: on this machine, in an S3 bucket, or in a zip file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from botocore.exceptions import BotoCoreError
from PIL import Image

from privimage.config import FolderSource
from privimage.data.decode import open_image
from privimage.data.location import filesystem, is_remote, local_path, reading
from privimage.data.records import Source, SourceImage
from privimage.errors import DataError

__all__ = ["open_folder"]

# Image files hardly compress: an archive that grows a hundredfold, beyond what a small one may, is a bomb.
_MAX_ZIP_RATIO = 100
_MAX_ZIP_FREE = 1 << 30
_MAX_ZIP_MEMBER = 1 << 30

_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
# RuntimeError is how zipfile refuses encrypted members and compressions that it does not know.
_READING_ERRORS = (OSError, BotoCoreError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """Files and folders below a root, as relative paths with forward slashes, and how to read a file."""

    folders: list[str]
    files: list[str]
    read: Callable[[str], bytes]


def open_folder(config: FolderSource) -> Source:
    """The images of a folder (or zip) with one folder per class; class names and images in sorted order.

    Every file inside a class folder, at any depth, counts as an image, so that none is dropped silently; hidden files
    and what macOS and Windows leave behind are ignored, and so are files beside the class folders. A class folder
    without images stays a class. A zip whose only top-level folder holds the class folders is understood.

    Raises:
        DataError: nothing at the path, no class folders, fewer than two, no images, or a zip that is damaged or
            expands beyond all proportion.
    """
    listing = _list(config.path)
    class_names = tuple(sorted({folder.split("/")[0] for folder in listing.folders}))
    if not class_names:
        raise DataError(f"{config.path} has no class folders: put the images of each class into a folder of its name.")
    labels = {name: label for label, name in enumerate(class_names)}
    files = sorted((labels[name], path) for path in listing.files for name, _, below in [path.partition("/")] if below)

    def images() -> Iterator[SourceImage]:
        for label, path in files:
            yield SourceImage(load=partial(_load, listing.read, path), label=label, path=path)

    return Source(
        origin=config.path,
        class_names=class_names,
        num_images=len(files),
        images=images,
        remote_files=is_remote(config.path) and not config.path.lower().endswith(".zip"),
    )


def _load(read: Callable[[str], bytes], path: str) -> Image.Image:
    try:
        data = read(path)
    except _READING_ERRORS as error:
        raise DataError(f"the file cannot be read ({type(error).__name__})") from None
    return open_image(data)


def _list(path: str) -> _Listing:
    if path.lower().endswith(".zip"):
        return _list_zip(path)
    return _list_remote(path) if is_remote(path) else _list_local(path)


def _list_local(path: str) -> _Listing:
    """Listed by the operating system and not by fsspec, which overlooks folders that are symbolic links."""
    root = local_path(path)
    if not root.is_dir():
        raise DataError(f"No folder at {path}: give a folder (or a .zip file) that holds one folder per class.")
    folders: list[str] = []
    files: list[str] = []
    with reading(path):
        for folder, subfolders, names in os.walk(root, onerror=_fail, followlinks=True):
            above = PurePosixPath(os.path.relpath(folder, root).replace(os.sep, "/"))
            folders += [str(above / name) for name in subfolders]
            files += [str(above / name) for name in names]
    return _visible(folders, files, lambda name: (root / name).read_bytes())


def _fail(error: OSError) -> None:
    raise error


def _list_remote(path: str) -> _Listing:
    fs, root = filesystem(path)
    with reading(path):
        found = fs.find(root, withdirs=True, detail=True)
    if not found:
        raise DataError(f"Nothing found at {path}: check the path, the bucket and its endpoint.")
    folders: list[str] = []
    files: list[str] = []
    for name, entry in found.items():
        relative = name.removeprefix(root).strip("/")
        # Object stores have no folders; a marker, an empty object named `cats/`, stands for an empty one.
        is_folder = entry["type"] == "directory" or entry["name"].endswith("/")
        (folders if is_folder else files).append(relative)
    folders += [name.rpartition("/")[0] for name in files if "/" in name]
    return _visible(folders, files, lambda name: bytes(fs.cat_file(f"{root}/{name}")))


def _list_zip(path: str) -> _Listing:
    fs, root = filesystem(path)
    try:
        with reading(path):
            archive = zipfile.ZipFile(fs.open(root, "rb"))
            size = int(fs.size(root))
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no readable zip file ({error}).") from None
    members = archive.infolist()
    # A member never yields more than its declared size (zipfile stops there), so the sum is a true bound.
    if sum(member.file_size for member in members) > max(_MAX_ZIP_FREE, _MAX_ZIP_RATIO * size) or any(
        member.file_size > _MAX_ZIP_MEMBER for member in members
    ):
        raise DataError(f"{path} expands beyond all proportion, as a zip bomb does: unpack it and give the folder.")
    files = [member.filename for member in members if not member.is_dir()]
    folders = [member.filename.rstrip("/") for member in members if member.is_dir()]
    folders += [name.rpartition("/")[0] for name in files if "/" in name]
    listing = _visible(folders, files, archive.read)
    return _unwrapped(listing)


def _unwrapped(listing: _Listing) -> _Listing:
    """Step into a zip's only top-level folder where that holds folders: zipping a folder adds this level."""
    top = {folder.split("/")[0] for folder in listing.folders}
    if len(top) != 1 or not any("/" in folder for folder in listing.folders):
        return listing
    prefix = f"{top.pop()}/"
    return _Listing(
        folders=[name.removeprefix(prefix) for name in listing.folders if name.startswith(prefix)],
        files=[name.removeprefix(prefix) for name in listing.files if name.startswith(prefix)],
        read=lambda name: listing.read(prefix + name),
    )


def _visible(folders: list[str], files: list[str], read: Callable[[str], bytes]) -> _Listing:
    def shown(path: str) -> bool:
        return bool(path) and not any(part.startswith(".") or part in _CLUTTER for part in path.split("/"))

    return _Listing(folders=list(filter(shown, folders)), files=list(filter(shown, files)), read=read)
