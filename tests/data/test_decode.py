"""Every image form is read on purpose or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from privimage.config.images import ImageConfig
from privimage.data.decode import canonical, open_image, pixel_digest
from privimage.errors import DataError

GRAY = ImageConfig(resolution=8, channels=1)
RGB = ImageConfig(resolution=8, channels=3)


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(size: int = 8) -> np.ndarray:
    return np.arange(size * size, dtype=np.uint8).reshape(size, size)


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = canonical(open_image(stored(Image.fromarray(ramp()))), GRAY)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, ramp()[None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(ramp())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = image.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else image
    upright = open_image(stored(lying, exif=exif))
    np.testing.assert_array_equal(canonical(upright, GRAY)[0], ramp())
    assert pixel_digest(upright) == pixel_digest(image)


def test_transparency_is_composited_on_black() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0], rgba[:4, :, 3], rgba[4:, :, 3] = 200, 255, 0
    pixels = canonical(open_image(stored(Image.fromarray(rgba))), RGB)
    assert (pixels[0, :4] == 200).all() and (pixels[:, 4:] == 0).all() and (pixels[1:] == 0).all()


def test_gray_with_alpha_is_composited_on_black() -> None:
    la = np.stack([np.full((8, 8), 100, np.uint8), np.full((8, 8), 128, np.uint8)], axis=-1)
    pixels = canonical(open_image(stored(Image.fromarray(la))), GRAY)
    assert abs(int(pixels[0, 0, 0]) - 50) <= 1


def test_palettes_are_resolved_with_and_without_transparency() -> None:
    image = Image.fromarray((np.arange(64) % 2).astype(np.uint8).reshape(8, 8), mode="L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    plain = canonical(open_image(stored(image)), RGB)
    assert tuple(plain[:, 0, 0]) == (255, 0, 0) and tuple(plain[:, 0, 1]) == (0, 255, 0)
    clear = canonical(open_image(stored(image, transparency=1)), RGB)
    assert tuple(clear[:, 0, 0]) == (255, 0, 0) and tuple(clear[:, 0, 1]) == (0, 0, 0)


def test_a_transparent_colour_of_a_png_without_alpha_becomes_black() -> None:
    gray = canonical(open_image(stored(Image.new("L", (8, 8), 77), transparency=77)), GRAY)
    colour = canonical(open_image(stored(Image.new("RGB", (8, 8), (9, 8, 7)), transparency=(9, 8, 7))), RGB)
    assert not gray.any() and not colour.any()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(kind: str) -> None:
    deep = (ramp().astype(np.uint16) * 257).reshape(8, 8)
    image = open_image(stored(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(canonical(image, GRAY)[0], ramp())
    assert pixel_digest(image) == pixel_digest(Image.fromarray(deep))


def test_integers_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(DataError, match=r"outside 0\.\.65535"):
        canonical(Image.fromarray(np.full((8, 8), 70_000, np.int32)), GRAY)


def test_float_pixels_are_read_as_shares_of_white() -> None:
    image = open_image(stored(Image.fromarray((ramp() / 255).astype(np.float32)), "TIFF"))
    np.testing.assert_array_equal(canonical(image, GRAY)[0], ramp())


@pytest.mark.parametrize("value", [2.0, -0.1, float("nan"), float("inf")])
def test_float_pixels_without_a_clear_reading_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        canonical(Image.fromarray(np.full((8, 8), value, np.float32)), GRAY)


def test_cmyk_and_one_bit_images_are_converted() -> None:
    cmyk = canonical(open_image(stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")), RGB)
    assert tuple(cmyk[:, 0, 0]) == (255, 0, 0)
    bits = canonical(open_image(stored(Image.fromarray(ramp() % 2 == 1))), GRAY)
    assert set(np.unique(bits)) == {0, 255}


def test_gray_becomes_rgb_and_rgb_gray() -> None:
    assert (canonical(Image.fromarray(ramp()), RGB) == ramp()).all()
    assert canonical(Image.new("RGB", (8, 8), (255, 0, 0)), GRAY)[0, 0, 0] == 76


def test_lab_is_converted_where_pillow_can_and_refused_where_it_cannot() -> None:
    image = Image.new("LAB", (8, 8), (112, 192, 175))
    try:
        image.convert("RGB")
    except ValueError:
        with pytest.raises(DataError, match="LAB"):
            canonical(image, RGB)
    else:
        assert np.abs(canonical(image, RGB)[:, 0, 0].astype(int) - (200, 30, 30)).max() <= 3


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    image = open_image(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (canonical(image, GRAY) == 10).all()


def test_the_three_ways_to_make_an_image_square() -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    for resize, mean in (("crop", 200), ("pad", None), ("stretch", None)):
        pixels = canonical(Image.fromarray(wide), ImageConfig(resolution=8, channels=1, resize=resize))[0]
        if mean is not None:
            assert (pixels == mean).all()
        elif resize == "pad":
            assert not pixels[:2].any() and not pixels[-2:].any() and pixels[4].max() > 150
        else:
            assert pixels[:, 4].min() > 150 and pixels[:, 0].max() < 20


def test_shrinking_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    assert np.ptp(canonical(Image.fromarray(board.astype(np.uint8)), GRAY)) <= 4


def test_padding_an_extremely_narrow_image_needs_no_huge_square() -> None:
    config = ImageConfig(resolution=8, channels=1, resize="pad")
    assert canonical(Image.new("L", (1, 5_000_000), 255), config).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is no image at all", "not an image"),
        (stored(Image.fromarray(ramp(64)))[:-40], "truncated"),
        (stored(Image.fromarray(ramp(64)), "JPEG")[:-40], "truncated"),
    ],
)
def test_files_without_a_whole_image_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_image(data)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_100, 12_000, 50_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    with pytest.raises(DataError, match="megapixels"):
        open_image(bomb(side, side))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_large_image_that_pillow_warns_of_is_read_without_a_word() -> None:
    assert open_image(stored(Image.new("1", (9_500, 9_500), 1))).size == (9_500, 9_500)


def test_the_digest_sees_pixels_and_not_containers() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    digests = {pixel_digest(open_image(stored(image, kind))) for kind in ("PNG", "BMP", "TIFF", "PPM")}
    assert digests == {pixel_digest(image)}
    assert pixel_digest(image.transpose(Image.Transpose.ROTATE_90)) not in digests
    changed = np.array(image)
    changed[0, 0, 0] ^= 1
    assert pixel_digest(Image.fromarray(changed)) not in digests


def test_the_digest_of_a_palette_image_is_that_of_its_colours() -> None:
    image = Image.fromarray(ramp()).convert("P")
    assert pixel_digest(image) == pixel_digest(image.convert("RGB"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), data=st.data())
def test_damaged_files_are_decoded_or_refused_but_never_crash(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(stored(Image.fromarray(ramp()), kind))
    places = st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=6)
    for place in data.draw(places):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        canonical(open_image(bytes(damaged)), GRAY)
    except DataError:
        pass
