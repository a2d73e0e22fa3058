"""What a zip file holds. Names in zips were written by many tools: what they mean is understood, or refused, never guessed."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from functools import partial

from privimage.data.listing import File, Listing
from privimage.data.location import filesystem, is_remote, local_path, reading
from privimage.errors import DataError

__all__ = ["list_zip"]

# Image files hardly compress: an archive that grows a hundredfold, beyond what a small one may, is a bomb.
_MAX_RATIO = 100
_MAX_FREE = 1 << 30
_MAX_MEMBER = 1 << 30

_ENCRYPTED, _UTF8 = 0x1 | 0x40, 0x800
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_COMPRESSIONS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 98: "PPMd", 99: "encryption"}
_UNICODE_PATH = 0x7075

_ANEW = "Make the zip anew, or unpack it and give the folder."


def list_zip(path: str) -> Listing:
    """The files of a zip, local or remote, which is read in place.

    Raises:
        DataError: nothing there, no zip, one that expands beyond all proportion, or one that cannot be read as a whole:
            encrypted, or packed by a method that Python does not know. Nothing in the message depends on a single file.
    """
    archive, size = _opened(path)
    members = archive.infolist()
    # A member never yields more than its declared size (zipfile stops there), so the sum is a true bound.
    if sum(member.file_size for member in members) > max(_MAX_FREE, _MAX_RATIO * size) or any(
        member.file_size > _MAX_MEMBER for member in members
    ):
        raise DataError(f"{path} expands beyond all proportion, as a zip bomb does: unpack it and give the folder.")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise DataError(f"{path} is encrypted, and there is no place for its password: unpack it and give the folder.")
    methods = {member.compress_type for member in members} - set(_READABLE)
    if methods:
        packed_by = ", ".join(sorted(_COMPRESSIONS.get(method, f"method {method}") for method in methods))
        raise DataError(
            f"{path} is packed by {packed_by}, which cannot be read: pack it by Deflate, or unpack it and give the folder."
        )
    names, unclear = _names(members)
    slashes = any("/" in name for name in names)
    folders: list[str] = []
    files: list[File] = []
    for member, name in zip(members, names, strict=True):
        if not slashes and name not in unclear:
            # Windows tools wrote all of it: not one path has the separator that the format asks for.
            name = name.replace("\\", "/")
        if name.endswith("/") and not member.file_size:
            folders.append(name)
        else:
            refused = _why_not(member, name, unclear)
            files.append(File(path=name, read=partial(archive.read, member), refused=refused))
    return Listing.of(folders, files, {part for name in unclear for part in name.split("/") if not part.isascii()})


def _opened(path: str) -> tuple[zipfile.ZipFile, int]:
    fs, root = filesystem(path)
    if not is_remote(path) and local_path(path).exists() and not local_path(path).is_file():
        raise DataError(f"{path} is no file: give a folder that holds one folder per class, or a .zip file.")
    try:
        with reading(path):
            return zipfile.ZipFile(fs.open(root, "rb")), int(fs.size(root))
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise DataError(f"{path} is no readable zip file ({error}).") from None


def _names(members: list[zipfile.ZipInfo]) -> tuple[list[str], set[str]]:
    """Names of all members, and those of them whose encoding nobody knows.

    A zip that does not say so may still be in UTF-8, as those that macOS makes: a name in another encoding practically
    never happens to be valid UTF-8, and here all of them have to be.
    """
    stated = [_stated_name(member) for member in members]
    open_ones = [b"" if name is not None else _raw(member) for member, name in zip(members, stated, strict=True)]
    try:
        guessed = [raw.decode() for raw in open_ones]
        unclear: set[str] = set()
    except UnicodeDecodeError:
        guessed = [member.orig_filename for member in members]
        unclear = {guess for guess, name in zip(guessed, stated, strict=True) if name is None}
    names = [guess if name is None else name for guess, name in zip(guessed, stated, strict=True)]
    return names, unclear


def _stated_name(member: zipfile.ZipInfo) -> str | None:
    """The name, if it is ASCII or the zip says that it is Unicode."""
    if member.flag_bits & _UTF8 or member.orig_filename.isascii():
        return member.orig_filename
    extra, at = member.extra, 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == _UNICODE_PATH and body[:1] == b"\1" and body[1:5] == struct.pack("<I", zlib.crc32(_raw(member))):
            return body[5:].decode(errors="replace")
        at += 4 + length
    return None


def _raw(member: zipfile.ZipInfo) -> bytes:
    """The bytes of a name that zipfile took for code page 437."""
    return member.orig_filename.encode("cp437", errors="replace")


def _why_not(member: zipfile.ZipInfo, name: str, unclear: set[str]) -> tuple[str, str] | None:
    if "\0" in name:
        return "its name holds a zero byte", _ANEW
    if "\\" in name and name not in unclear:
        return "its name holds a backslash, where others have slashes", _ANEW
    if name.endswith("/"):
        return "it has the name of a folder, and content", _ANEW
    if stat.S_ISLNK(member.external_attr >> 16):
        return "it is a symbolic link", "Put the file itself into the zip."
    return None
