"""From the bytes of any image file to the canonical pixels: the one place that knows about image formats.

Everything that changes how a picture looks is decided here on purpose: orientation, palettes, transparency, 16-bit
and float pixels. Nothing is guessed: what has no clear reading is refused with a reason.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from privimage.data.depth import full_range, is_deep_colour, largest_bits, states_its_range
from privimage.data.foreign import foreign_format
from privimage.data.metadata import check_one_picture, orientation, without_metadata
from privimage.data.problems import REPAIR, UnusableImage

if TYPE_CHECKING:
    # For types alone: the process that decodes sensitive images starts without the libraries of configurations.
    from privimage.config.images import ImageConfig
    from privimage.data.decoder import Form

__all__ = ["MAX_PIXELS", "Decoded", "canonical", "decode", "open_image", "pixel_digest"]

MAX_PIXELS = 100_000_000
"""Largest image that is decoded, in pixels."""

# What Pillow's decoders raise for damaged files; nothing here can come from a correct file but the memory error.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_CONVERT = "Save the images as PNG, JPEG or TIFF, gray or RGB."
_SHRINK = "Make the images smaller."
_filters = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What admission needs of an image: canonical pixels (see `canonical`), `pixel_digest`, and of how many of 16 bits its
    largest value has need, where neither file nor source says that (see `depth`)."""

    pixels: NDArray[np.uint8]
    digest: bytes
    used_bits: int | None


def decode(found: bytes | Image.Image, config: ImageConfig | Form, bits: int | None = None) -> Decoded:
    """Decode an image file, or take a decoded image, and bring it into the canonical form.

    Args:
        bits: of gray values of more than 8 bits, how many are used; None where that is not stated.

    Raises:
        UnusableImage: as `open_image` and `canonical` do.
    """
    image, used_bits = _opened(found, bits) if isinstance(found, bytes) else full_range(found, bits)
    # The digest comes second: what it is taken of is known to be convertible then.
    pixels = canonical(image, config)
    return Decoded(pixels=pixels, digest=pixel_digest(image), used_bits=used_bits)


def open_image(data: bytes, bits: int | None = None) -> Image.Image:
    """Decode an image file completely and turn it upright by its EXIF orientation; of an animation, the first frame.

    Metadata that is broken or too large is left aside, since no picture needs it. Integer gray values of more than 8 bits
    come out in 0..65535 (mode I;16) with white at the top; `bits` says how many of 16 the file uses, None: all.

    Raises:
        UnusableImage: empty, truncated, damaged, no image at all, several pages, larger than `MAX_PIXELS`, or with values
            beyond `bits`; the message is one short reason without the file's name.
    """
    return _opened(data, bits)[0]


def _opened(data: bytes, bits: int | None) -> tuple[Image.Image, int | None]:
    """The image as `open_image` gives it, and `Decoded.used_bits`."""
    if not data:
        raise UnusableImage("the file is empty")
    try:
        return _read(data, bits)
    except UnusableImage:
        raise
    except _DECODING_ERRORS as error:
        reason = f"damaged or truncated image ({type(error).__name__}: {error})"
        if isinstance(error, UnidentifiedImageError):
            reason = foreign_format(data) or "not an image in a known format"
        cure = _CONVERT if isinstance(error, UnidentifiedImageError) else REPAIR
    if (bare := without_metadata(data)) is not None:
        with suppress(*_DECODING_ERRORS):
            return _read(bare, bits)
    raise UnusableImage(reason, cure)


def _read(data: bytes, bits: int | None) -> tuple[Image.Image, int | None]:
    # Pillow warns of images that are large, on standard error; how large they may be is decided here.
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError:
            raise _too_large() from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    check_one_picture(image)
    deep_colour, is_stated = is_deep_colour(image), states_its_range(image)
    image.load()
    turn = orientation(image)
    ranged, used_bits = (image, largest_bits(image, bits)) if deep_colour else full_range(image, bits, is_stated)
    return ranged if turn is None else ranged.transpose(turn), used_bits


def _too_large() -> UnusableImage:
    return UnusableImage(f"more than {MAX_PIXELS // 1_000_000} megapixels", _SHRINK)


def canonical(image: Image.Image, config: ImageConfig | Form) -> NDArray[np.uint8]:
    """The canonical pixels of a decoded image.

    16-bit grayscale (modes I;16 and I) is divided by 257, so that 65535 becomes 255. Float pixels must lie in 0..1.
    Transparency is composited on black, the colour that `pad` fills with. Gray becomes RGB, and RGB gray (ITU-R 601),
    as `channels` asks. An image that has the right size already keeps its pixels; others are resized antialiased.

    Returns:
        uint8 array of shape (channels, resolution, resolution).

    Raises:
        UnusableImage: pixels without a clear reading: float outside 0..1, integers outside 16 bits, or a mode that
            Pillow cannot convert.
    """
    mode = "L" if config.channels == 1 else "RGB"
    flat = _eight_bit(image)
    try:
        if flat.mode != mode:
            flat = flat.convert(mode)
    except ValueError:
        reason = f"pixel mode {image.mode} has no way to {mode}: save the image as 8-bit {mode}"
        raise UnusableImage(reason, _CONVERT) from None
    pixels = np.asarray(_square(flat, config.resolution, config.resize), dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def pixel_digest(image: Image.Image) -> bytes:
    """sha256 (32 bytes) over size and pixels of a decoded, upright original as it is seen: with 8 bits, on black.

    The same picture has the same digest under another file name, in another lossless container, and in another mode: gray
    as L, RGB, RGBA that is opaque, a palette, or 16 bits of 257 times the values. Else copies of one picture, saved in two
    ways, would land in different splits, and a set that was saved anew would have another budget. Of files that are gray or
    RGB with 8 bits this is the digest that earlier versions took of them, and so is the name of a set of such files.

    Raises:
        UnusableImage: a mode that Pillow cannot convert.
    """
    flat = _eight_bit(image)
    try:
        pixels = np.asarray(flat if flat.mode in ("L", "RGB") else flat.convert("RGB"))
    except ValueError:
        raise UnusableImage(f"pixel mode {image.mode} has no way to RGB", _CONVERT) from None
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    mode = "L" if pixels.ndim == 2 else "RGB"
    header = f"{mode} {image.width} {image.height}\n".encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).digest()


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel, without palette or transparency."""
    if image.mode.startswith("I"):
        return _from_sixteen_bit(image)
    if image.mode == "F":
        return _from_float(image)
    if image.mode in ("P", "PA"):
        image = _without_palette(image)
    if image.mode in ("LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_black(image)
    return image.convert("L") if image.mode == "1" else image


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UnusableImage("integer pixels outside 0..65535: save the image with 8 or 16 bits", _CONVERT)
    return Image.fromarray(np.rint(pixels / 257).astype(np.uint8))


def _from_float(image: Image.Image) -> Image.Image:
    # 0..255 is not accepted as well: a nearly black image would then be read as a bright one.
    pixels = np.asarray(image)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise UnusableImage("float pixels outside 0..1: scale them, or save the image with 8 bits", _CONVERT)
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def _without_palette(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")


def _on_black(image: Image.Image) -> Image.Image:
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if gray else "RGBA")
    colour = image.convert("RGBA")
    on_black = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    return on_black.convert("L" if gray else "RGB")


def _square(image: Image.Image, resolution: int, resize: str) -> Image.Image:
    """An image of resolution x resolution pixels; the whole of it, or its centre, as `resize` says."""
    width, height = image.size
    if (width, height) == (resolution, resolution):
        return image
    if resize == "pad":
        # Resized before it is padded: the square around a 1 x 10,000,000 image would not fit into memory.
        scale = resolution / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        inner = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        square = Image.new(image.mode, (resolution, resolution))
        square.paste(inner, ((resolution - size[0]) // 2, (resolution - size[1]) // 2))
        return square
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side == resolution:
            return image
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, reducing_gap=3.0)
