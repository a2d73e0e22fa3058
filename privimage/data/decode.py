"""From the bytes of any image file to the canonical pixels: the one place that knows about image formats.

Everything that changes how a picture looks is decided here on purpose: orientation, palettes, transparency, 16-bit
and float pixels. Nothing is guessed: what has no clear reading is refused with a reason.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from privimage.config import ImageConfig
from privimage.errors import DataError

__all__ = ["MAX_PIXELS", "canonical", "open_image", "pixel_digest"]

MAX_PIXELS = 100_000_000
"""Largest image that is decoded, in pixels; Pillow's own, smaller limit for warnings counts too where it is set."""

# What Pillow's decoders raise for damaged files; nothing here can come from a correct file but the memory error.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def open_image(data: bytes) -> Image.Image:
    """Decode an image file completely and turn it upright by its EXIF orientation; of an animation, the first frame.

    Raises:
        DataError: empty, truncated, damaged, no image at all, or larger than `MAX_PIXELS`; the message is one short
            reason without the file's name.
    """
    if not data:
        raise DataError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        if image.width * image.height <= limit:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = MAX_PIXELS
    except UnidentifiedImageError:
        raise DataError("not an image in a known format") from None
    except _DECODING_ERRORS as error:
        raise DataError(f"damaged or truncated image ({type(error).__name__}: {error})") from None
    raise DataError(f"more than {limit // 1_000_000} megapixels")


def canonical(image: Image.Image, config: ImageConfig) -> NDArray[np.uint8]:
    """The canonical pixels of a decoded image.

    16-bit grayscale (modes I;16 and I) is divided by 257, so that 65535 becomes 255. Float pixels must lie in 0..1.
    Transparency is composited on black, the colour that `pad` fills with. Gray becomes RGB, and RGB gray (ITU-R 601),
    as `channels` asks. An image that has the right size already keeps its pixels; others are resized antialiased.

    Returns:
        uint8 array of shape (channels, resolution, resolution).

    Raises:
        DataError: pixels without a clear reading: float outside 0..1, integers outside 16 bits, or a mode that
            Pillow cannot convert.
    """
    mode = "L" if config.channels == 1 else "RGB"
    flat = _eight_bit(image)
    try:
        if flat.mode != mode:
            flat = flat.convert(mode)
    except ValueError:
        raise DataError(f"pixel mode {image.mode} has no way to {mode}: save the image as 8-bit {mode}") from None
    pixels = np.asarray(_square(flat, config.resolution, config.resize), dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def pixel_digest(image: Image.Image) -> bytes:
    """sha256 (32 bytes) over mode, size and pixels of a decoded, upright original.

    The same picture has the same digest under another file name and in another lossless container: palettes are
    resolved and the 16-bit modes, which differ between file formats, are made one first.
    """
    if image.mode in ("P", "PA"):
        image = _without_palette(image)
    elif image.mode.startswith("I"):
        image = Image.fromarray(np.asarray(image).astype(np.int32))
    header = f"{image.mode} {image.width} {image.height}\n".encode()
    return hashlib.sha256(header + image.tobytes()).digest()


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
        raise DataError("integer pixels outside 0..65535: save the image with 8 or 16 bits")
    return Image.fromarray(np.rint(pixels / 257).astype(np.uint8))


def _from_float(image: Image.Image) -> Image.Image:
    # 0..255 is not accepted as well: a nearly black image would then be read as a bright one.
    pixels = np.asarray(image)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError("float pixels outside 0..1: scale them, or save the image with 8 bits")
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
