"""Files that are pictures to people and none to Pillow: what they are, and what to save them as."""

from __future__ import annotations

__all__ = ["foreign_format"]

_GRAY16 = "export it as 16-bit PNG or TIFF, and say in `bits` how many bits are used"
_PLAIN = "save it as PNG or JPEG"

# What a file of a kind begins with.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x93NUMPY", "a NumPy array", _PLAIN),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1f\x8b", "a gzip archive (NIfTI is one)", "unpack it, and save its images as PNG or TIFF"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _PLAIN),
    (b"%PDF", "a PDF", "save its pages as PNG"),
    (b"MATLAB 5.0", "a MATLAB file", _PLAIN),
    (b"{\\rtf", "a text", "remove it"),
    (b"v/1\x01", "an OpenEXR image", _PLAIN),
    (b"\x76\x2f\x31\x01", "an OpenEXR image", _PLAIN),
    (b"\xff\x0a", "a JPEG XL image", _PLAIN),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", _PLAIN),
    (b"\x1aE\xdf\xa3", "a video", "save its frames as PNG"),
    (b"PAR1", "a Parquet file", "use a source of the kind parquet"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def foreign_format(data: bytes) -> str | None:
    """What a file is that is no image in a known format, and what to do about it, as `a DICOM file: export ...`."""
    if data[128:132] == b"DICM":
        return f"a DICOM file: {_GRAY16}"
    if data[4:8] == b"ftyp":
        if data[8:12] in _HEIF_BRANDS:
            return f"a HEIF (HEIC) image: {_PLAIN}"
        return "a video or another ISO media file: save its frames as PNG"
    for start, kind, cure in _STARTS:
        if data.startswith(start):
            return f"{kind}: {cure}"
    if b"<svg" in data[:1000].lower():
        return f"an SVG drawing: {_PLAIN}"
    return None
