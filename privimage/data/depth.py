"""Gray values of more than 8 bits: how many bits are used, and where white is.

A file with 16 bits a pixel does not say whether its values fill them. Radiographs hold 10 or 12, and copies of 8-bit
pictures 8: read as parts of 65,535 they are all but black. So the source may state it (`bits`), values are then
brought to the full range, and what is beyond is refused. If it states nothing the full range is assumed, and a set that
hardly uses it is refused as a whole (`unclear_range`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from privimage.data.problems import UnusableImage

__all__ = ["STATE_BITS", "full_range", "is_deep_colour", "largest_bits", "states_its_range", "unclear_range"]

STATE_BITS = "Say in the source's `bits` how many bits gray values use, such as 12; 16 says that they use them all."
_SAVE_8_BITS = "Save the images with 8 bits a channel."
_FULL = 65535
_MANY = 12  # a picture that uses fewer bits than these has less than a sixteenth of the brightness of a bright one

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def states_its_range(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet is one whose file states the largest value, as PGM does, and which Pillow brings
    to 16 bits by it; 65535 says nothing, being what writers put there who do not know."""
    return image.format == "PPM" and any(isinstance(given, tuple) and _FULL not in given for given in _decoding(image))


def full_range(image: Image.Image, bits: int | None, is_stated: bool = False) -> tuple[Image.Image, int | None]:
    """The image with gray values above 8 bits brought to 0..65535, white at the top, and what is transparent black.

    Other images come back as they are. The second value is how many bits the largest value needs, where that is worth
    knowing: gray values of more than 8 bits whose range neither the file nor the source states.

    Args:
        is_stated: that it `states_its_range`, so that `bits` is not asked.

    Raises:
        UnusableImage: a value beyond the bits that the source states; or float pixels with white at zero.
    """
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    if image.mode == "F" and white_is_zero:
        raise UnusableImage("float pixels of which zero is white have no clear range", _SAVE_8_BITS)
    if not image.mode.startswith("I"):
        return image, None
    pixels = np.asarray(image).astype(np.int64)
    clear = pixels == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
    stated = bits
    if is_stated:
        stated = 16
    elif bits is None and tags:
        # TIFF alone can store 12 bits as 12 bits; 16 or 32 of them say nothing.
        stored = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
        stated = stored if 8 < stored < 16 else None
    used = int(pixels.max(initial=0)).bit_length() if stated is None and pixels.min(initial=0) >= 0 else None
    top = (1 << (stated or 16)) - 1
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > top:
        if stated is not None and stated != 16:
            raise UnusableImage(f"integer pixels outside 0..{top}, which is all that {stated} bits hold", STATE_BITS)
        raise UnusableImage("integer pixels outside 0..65535: save the image with 8 or 16 bits", _SAVE_8_BITS)
    if white_is_zero:
        pixels = top - pixels
    if top != _FULL:
        pixels = np.rint(pixels * (_FULL / top)).astype(np.int64)
    if clear is not None:
        pixels[clear] = 0
    return Image.fromarray(pixels.astype(np.uint16)), used


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet stores 16 bits a channel of which Pillow will keep the upper 8."""
    return not image.mode.startswith("I") and any(
        ";16" in str(given) or (image.format == "PPM" and isinstance(given, tuple) and _FULL in given)
        for given in _decoding(image)
    )


def _decoding(image: Image.Image) -> list[object]:
    """What Pillow gives to the decoders of an image that is not loaded yet: the mode in the file, alone or with more."""
    return [tile[3] for tile in getattr(image, "tile", ())]


def largest_bits(image: Image.Image, bits: int | None) -> int | None:
    """How many of 16 bits the largest value of a loaded `is_deep_colour` image needs, alpha left out.

    None where the source says that all are used.

    Raises:
        UnusableImage: the source says that fewer are used, which can no longer be seen; or one colour is transparent.
    """
    if "transparency" in image.info:
        raise UnusableImage("a transparent colour of 16 bits cannot be told from its neighbours", _SAVE_8_BITS)
    if bits is not None and bits < 16:
        raise UnusableImage(f"colour with 16 bits a channel, of which {bits} are used, cannot be read", _SAVE_8_BITS)
    colours = [band for band in image.getbands() if band.upper() != "A"]
    largest = max(int(np.asarray(image.getchannel(band)).max(initial=0)) for band in colours)
    return None if bits == 16 else 8 + largest.bit_length()


def unclear_range(used: Sequence[int]) -> str | None:
    """Why a set is refused whose images of more than 8 bits, all together, need so many bits each; None if it is clear.

    A set of pictures that fill 16 bits has bright spots: one image at least needs the uppermost bit, and most need more
    than 12. This is a question to the set, since an image may be dark by itself, and the answer refuses all of it.
    """
    if not used:
        return None
    few = sum(bits <= _MANY for bits in used)
    if max(used) == 16 and 2 * few <= len(used):
        return None
    return (
        f"of {len(used)} images with 16 or 32 bits a channel, {few} need {_MANY} bits or fewer, and the largest value of all needs "
        f"{max(used)}: read as parts of 65535 they would be dark"
    )
