"""Two real, small image sets without a download: scanned digits as sensitive, rendered glyphs as public images."""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageFont

from privimage.data.records import Source, SourceImage

__all__ = ["GLYPH_SIZE", "demo_digits", "demo_glyphs", "render_glyph"]

GLYPH_SIZE = 32
"""Height and width of a rendered glyph in pixels."""

_CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_MASK_HEIGHT = 48

# The fonts of matplotlib whose digits and Latin letters sit at their usual code points.
_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip


def demo_digits() -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8, white on black; its values 0..16 become 0..255.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test part.
    """
    from sklearn.datasets import load_digits  # slow to import, and needed by this source only

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)

    def images() -> Iterator[SourceImage]:
        for index, label in enumerate(digits.target):
            load = partial(Image.fromarray, pixels[index])
            yield SourceImage(read=load, label=int(label), path=f"demo-digits/{index}")

    return Source(
        origin="the demo digits",
        class_names=tuple(str(name) for name in digits.target_names),
        num_images=len(pixels),
        images=images,
    )


def demo_glyphs(images_per_category: int, seed: int) -> Source:
    """Digits, capital and small letters in 21 fonts, distorted at random: 62 categories, white on black, 32x32.

    Class names such as `digit-3`, `upper-A` and `lower-a` stay distinct where case does not count.
    """

    def images() -> Iterator[SourceImage]:
        for label in range(len(_CHARACTERS)):
            for index in range(images_per_category):
                load = partial(render_glyph, label, index, seed)
                yield SourceImage(read=load, label=label, path=f"demo-glyphs/{_class_name(label)}/{index}")

    return Source(
        origin="the demo glyphs",
        class_names=tuple(_class_name(label) for label in range(len(_CHARACTERS))),
        num_images=len(_CHARACTERS) * images_per_category,
        images=images,
    )


def render_glyph(label: int, index: int, seed: int) -> Image.Image:
    """Image `index` of category `label`, 32x32 grayscale; the same for the same three numbers."""
    random = np.random.default_rng([seed, label, index])
    font = _FONTS[random.integers(len(_FONTS))]
    mask = _glyph_mask(font, _CHARACTERS[label])
    matrix = _random_affine(random, mask.width, mask.height)
    side = 2 * GLYPH_SIZE
    glyph = mask.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    # Pens are wide for their letters: most strokes get thicker, and only bold ones can bear to get thinner.
    pen = int(random.choice([3, 5, 7]))
    if "Bol" in font and random.random() < 0.3:
        glyph = glyph.filter(ImageFilter.MinFilter(3))
    elif random.random() < 0.75:
        glyph = glyph.filter(ImageFilter.MaxFilter(pen))
    glyph = glyph.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 2.0)))
    pixels = np.asarray(glyph.reduce(2), dtype=np.float64)
    noisy = pixels * random.uniform(0.85, 1.0) + random.normal(0, random.uniform(0, 5), pixels.shape)
    return Image.fromarray(np.rint(np.clip(noisy, 0, 255)).astype(np.uint8))


def _class_name(label: int) -> str:
    character = _CHARACTERS[label]
    kind = "digit" if character.isdigit() else "upper" if character.isupper() else "lower"
    return f"{kind}-{character}"


def _random_affine(random: np.random.Generator, width: int, height: int) -> tuple[float, ...]:
    """Coefficients for `Image.transform`, which map each output pixel to a pixel of the glyph's mask.

    The glyph is fitted to the frame's height, as scanned characters are cut out, and narrow ones stay narrow.
    """
    side = 2 * GLYPH_SIZE
    angle, shear = random.normal(0, 0.1), random.normal(0, 0.15)
    tall = side * random.uniform(0.88, 1.04)
    wide = min(tall * width / height * random.uniform(0.7, 1.1), side * random.uniform(0.65, 0.9))
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = rotate @ np.array([[1, shear], [0, 1]]) @ np.diag([wide / width, tall / height])
    inverse: NDArray[np.float64] = np.linalg.inv(forward)
    centre = np.array([side / 2, side / 2]) + random.normal(0, 0.02 * side, 2)
    offset = np.array([width / 2, height / 2]) - inverse @ centre
    return (*map(float, (*inverse[0], offset[0], *inverse[1], offset[1])),)


@cache
def _glyph_mask(font: str, character: str) -> Image.Image:
    """A character cut out at its edges, white on black, drawn once for each font."""
    drawn = _font(font).getmask(character, mode="L")
    mask = Image.frombytes("L", drawn.size, bytes(drawn))
    return mask.crop(mask.getbbox())


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf"), size=_MASK_HEIGHT * 2)
