"""What a file holds beside the pixels: orientation, which counts; pages, which do too; and all else, which does not."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from privimage.data.problems import UnusableImage

__all__ = ["check_one_picture", "orientation", "without_metadata"]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for EXIF data that are none.
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, struct.error, RuntimeError)

# Formats whose further frames are one picture in time, in other sizes, or in layers: the first one stands for it.
_FRAMES_OF_ONE = ("GIF", "WEBP", "PNG", "AVIF", "FLI", "MPO", "ICO", "ICNS", "CUR", "PSD", "XVTHUMB")
_NEW_SUBFILE_TYPE = 254
_SMALLER_OR_MASK = 1 | 4

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")


def orientation(image: Image.Image) -> Image.Transpose | None:
    """How a loaded image has to be turned to be upright, by its EXIF data; None where these say nothing or are broken."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except _EXIF_ERRORS:
        return None
    return _TURNS.get(value) if isinstance(value, int) else None


def check_one_picture(image: Image.Image) -> None:
    """Refuse a file of several pages, of which only the first would be seen; leaves the image at its first frame.

    Smaller copies of the first page and its transparency mask, marked as such in TIFF, are no pictures of their own.

    Raises:
        UnusableImage: there is a second page.
    """
    if image.format in _FRAMES_OF_ONE or getattr(image, "n_frames", 1) == 1:
        return
    first = 0
    for frame in range(getattr(image, "n_frames", 1)):
        image.seek(frame)
        kind = getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0)
        if frame == first and kind & _SMALLER_OR_MASK:
            break
        if frame > first and not kind & _SMALLER_OR_MASK:
            break
    else:
        image.seek(first)
        return
    raise UnusableImage("several pages in one file", "Save each page of these files as a file of its own.")


def without_metadata(data: bytes) -> bytes | None:
    """A PNG file without texts, colour profile and animation; None for other files.

    Pillow refuses a PNG whose text or profile is large when it is unpacked, or damaged. EXIF stays, for the orientation,
    where it is whole.
    """
    if not data.startswith(_PNG):
        return None
    kept = [_PNG]
    at = len(_PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        whole = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if kind in _PIXEL_CHUNKS and (kind != b"eXIf" or whole):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)
