"""Images whose files say little, or too much: pixels are read as they are meant, or the image is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from privimage.config.images import ImageConfig
from privimage.data.decode import canonical, decode, open_image, pixel_digest
from privimage.data.depth import unclear_range
from privimage.data.problems import UnusableImage

GRAY = ImageConfig(resolution=8, channels=1)
RGB = ImageConfig(resolution=8, channels=3)
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def stored(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def gray_tiff(pixels: NDArray[Any], photometric: int, bits: int | None = None) -> bytes:
    """An uncompressed gray TIFF, which Pillow would not write so."""
    bits = bits or pixels.dtype.itemsize * 8
    height, width = pixels.shape
    if bits == 12:
        flat = pixels.reshape(-1, 2).astype(int)
        packed = np.stack([flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], axis=1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png: bytes, chunk: bytes) -> bytes:
    """A PNG with one more chunk, right after its header."""
    return png[:33] + chunk + png[33:]


# ------------------------------------------------------------------ bits


@pytest.mark.parametrize(("bits", "kind"), [(8, "PNG"), (10, "TIFF"), (12, "PNG"), (12, "TIFF"), (16, "PNG")])
def test_gray_values_are_scaled_by_the_bits_that_the_source_states(bits: int, kind: str) -> None:
    top = (1 << bits) - 1
    deep = np.rint(RAMP.astype(float) * top / 255).astype(np.uint16)
    found = decode(stored(deep, kind), GRAY, bits)
    np.testing.assert_array_equal(found.pixels[0], RAMP)
    assert found.used_bits is None
    assert found.digest == pixel_digest(Image.fromarray(RAMP))


def test_eight_bits_in_thirty_two_are_scaled_as_well() -> None:
    np.testing.assert_array_equal(canonical(open_image(stored(RAMP.astype(np.int32), "TIFF"), 8), GRAY)[0], RAMP)


def test_values_beyond_the_stated_bits_are_refused() -> None:
    with pytest.raises(UnusableImage, match=r"outside 0\.\.4095, which is all that 12 bits hold") as caught:
        open_image(stored(np.full((8, 8), 4096, np.uint16)), 12)
    assert "`bits`" in caught.value.cure


def test_what_a_file_states_itself_needs_no_statement() -> None:
    twelve = np.rint(RAMP.astype(float) * 4095 / 255).astype(np.uint16)
    packed = decode(gray_tiff(twelve, 1, bits=12), GRAY)
    np.testing.assert_array_equal(packed.pixels[0], RAMP)
    pgm = b"P5 8 8 4095\n" + twelve.astype(">u2").tobytes()
    for bits in (None, 12):
        found = decode(pgm, GRAY, bits)
        np.testing.assert_array_equal(found.pixels[0], RAMP)
        assert found.used_bits is None and packed.used_bits is None


def test_a_file_that_states_sixteen_bits_for_twelve_is_asked_for_them() -> None:
    twelve = np.rint(RAMP.astype(float) * 4095 / 255).astype(np.uint16)
    pgm = b"P5 8 8 65535\n" + twelve.astype(">u2").tobytes()
    for data in (pgm, stored(twelve, "JPEG2000")):
        assert decode(data, GRAY).used_bits == 12
        np.testing.assert_array_equal(decode(data, GRAY, 12).pixels[0], RAMP)


@pytest.mark.parametrize(("top", "used"), [(255, 8), (4095, 12), (65535, 16), (0, 0)])
def test_without_a_statement_it_is_told_how_many_bits_are_used(top: int, used: int) -> None:
    deep = np.zeros((8, 8), np.uint16)
    deep[3, 4] = top
    assert decode(stored(deep), GRAY).used_bits == used
    assert decode(stored(deep), GRAY, 16).used_bits is None


def test_a_set_that_hardly_uses_its_sixteen_bits_is_unclear() -> None:
    assert unclear_range([]) is None
    assert unclear_range([16, 14, 13]) is None
    assert "need 12 bits or fewer" in str(unclear_range([12] * 40))
    assert "15" in str(unclear_range([15, 14, 15]))
    # One stray picture must not make a set of radiographs clear.
    assert unclear_range([12] * 30 + [16]) is not None


def colour_png(pixels: NDArray[np.uint16], *chunks: bytes) -> bytes:
    """An RGB or RGBA PNG with 16 bits a channel, which Pillow would not write."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_colour_of_sixteen_bits_tells_how_many_are_used_and_alpha_does_not_count() -> None:
    dark = np.zeros((8, 8, 4), np.uint16)
    dark[..., :3], dark[..., 3] = 4095, 65535
    assert decode(colour_png(dark), RGB).used_bits == 12
    assert decode(colour_png(dark[..., :3] * 16), RGB).used_bits == 16
    assert decode(colour_png(dark), RGB, 16).used_bits is None
    ppm = b"P6 8 8 65535\n" + dark[..., :3].astype(">u2").tobytes()
    assert int(decode(ppm, RGB).used_bits or 16) < 16
    assert decode(ppm.replace(b"65535", b"4095"), RGB).used_bits is None
    with pytest.raises(UnusableImage, match="of which 12 are used"):
        decode(colour_png(dark), RGB, 12)


# ------------------------------------------------------------------ white, and what is transparent


@pytest.mark.parametrize("bits", [None, 16])
def test_where_zero_is_white_it_is_so_at_sixteen_bits_as_at_eight(bits: int | None) -> None:
    eight = decode(gray_tiff(RAMP, 0), GRAY, bits)
    sixteen = decode(gray_tiff(RAMP.astype(np.uint16) * 257, 0), GRAY, bits)
    np.testing.assert_array_equal(eight.pixels[0], 255 - RAMP)
    np.testing.assert_array_equal(sixteen.pixels, eight.pixels)
    assert sixteen.digest == eight.digest


def test_where_zero_is_white_the_stated_bits_tell_black() -> None:
    twelve = np.rint(RAMP.astype(float) * 4095 / 255).astype(np.uint16)
    np.testing.assert_array_equal(decode(gray_tiff(twelve, 0), GRAY, 12).pixels[0], 255 - RAMP)
    # Without a statement the file's own values count, and not the bright ones that inverting makes of them.
    assert decode(gray_tiff(twelve, 0), GRAY).used_bits == 12


def test_float_pixels_of_which_zero_is_white_are_refused() -> None:
    data = bytearray(gray_tiff((RAMP / 255).astype(np.float32), 0))
    at = data.index(struct.pack("<HHII", 279, 4, 1, 256))
    count = struct.unpack_from("<H", data, 8 + 256)[0]
    data[8 + 256 : 8 + 258] = struct.pack("<H", count + 1)
    data[at + 12 : at + 12] = struct.pack("<HHII", 339, 3, 1, 3)
    with pytest.raises(UnusableImage, match="zero is white"):
        open_image(bytes(data))


def test_a_transparent_gray_of_sixteen_bits_becomes_black_as_one_of_eight_does() -> None:
    deep = RAMP.astype(np.uint16) * 257
    value = int(deep[7, 7])
    eight = canonical(open_image(stored(RAMP, transparency=int(RAMP[7, 7]))), GRAY)
    sixteen = canonical(open_image(stored(deep, transparency=value)), GRAY)
    np.testing.assert_array_equal(sixteen, eight)
    assert sixteen[0, 7, 7] == 0 and sixteen[0, 7, 6] == RAMP[7, 6]


def test_a_transparent_colour_of_sixteen_bits_is_refused() -> None:
    pixels = np.full((8, 8, 3), 60_000, np.uint16)
    with pytest.raises(UnusableImage, match="transparent colour"):
        open_image(colour_png(pixels, png_chunk(b"tRNS", struct.pack(">HHH", 60_000, 60_000, 60_000))))


# ------------------------------------------------------------------ one picture, one digest


def test_a_gray_picture_has_one_digest_in_every_mode() -> None:
    gray = Image.fromarray(RAMP)
    opaque = gray.convert("RGBA")
    palette = Image.fromarray(RAMP)
    palette.putpalette([value for number in range(256) for value in (number,) * 3])
    files = {
        "L": stored(gray),
        "RGB": stored(gray.convert("RGB")),
        "RGBA": stored(opaque),
        "LA": stored(gray.convert("LA")),
        "16 bits": stored(RAMP.astype(np.uint16) * 257),
        "16 bits, TIFF": stored(RAMP.astype(np.uint16) * 257, "TIFF"),
        "32 bits": stored(RAMP.astype(np.int32) * 257, "TIFF"),
        "palette": stored(palette),
        "BMP": stored(gray, "BMP"),
        "16-bit colour": colour_png(np.repeat(RAMP.astype(np.uint16)[..., None] * 257, 3, axis=2)),
        "16-bit RGBA": colour_png(
            np.dstack([RAMP.astype(np.uint16) * 257] * 3 + [np.full((8, 8), 65535, np.uint16)]),
        ),
    }
    digests = {name: pixel_digest(open_image(data)) for name, data in files.items()}
    assert set(digests.values()) == {digests["L"]}, digests


def test_a_colour_picture_has_one_digest_in_every_mode() -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 4, (8, 8, 3), dtype=np.uint8) * 80)
    files = [stored(colour), stored(colour.convert("RGBA")), stored(colour, "TIFF"), stored(colour.quantize(64))]
    assert len({pixel_digest(open_image(data)) for data in files}) == 1


def test_black_and_white_is_black_and_white_in_every_mode() -> None:
    bits = Image.fromarray(RAMP > 100)
    assert pixel_digest(open_image(stored(bits))) == pixel_digest(open_image(stored(bits.convert("RGB"))))


def test_pictures_of_another_shape_or_colour_have_other_digests() -> None:
    gray = Image.fromarray(RAMP)
    tall = Image.fromarray(RAMP.reshape(16, 4))
    red = Image.merge("RGB", [gray, Image.new("L", gray.size), Image.new("L", gray.size)])
    # A gray picture of three times the width holds the bytes of a colour one.
    wide = Image.frombytes("L", (24, 8), red.tobytes())
    assert len({pixel_digest(image) for image in (gray, tall, red, wide)}) == 4


# ------------------------------------------------------------------ metadata


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", bytes.fromhex("0008000201120003")),
        png_chunk(b"eXIf", b""),
        png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 2_000_000)),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        png_chunk(b"iCCP", b"large\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iCCP", b"damaged\0\0" + b"no zlib stream"),
        png_chunk(b"tEXt", b"Comment\0fine")[:-4] + b"bad!",
        png_chunk(b"eXIf", b"MM\0*")[:-4] + b"bad!",
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  4\nzzzz\n")),
        png_chunk(b"pHYs", b"short"),
    ],
    ids=[
        *("EXIF is none", "EXIF is empty", "a long text", "a long XMP", "a large profile", "a damaged profile"),
        *("a bad checksum of a text", "a bad checksum of EXIF", "EXIF in a text that is none", "a short chunk"),
    ],
)
def test_a_png_whose_metadata_are_broken_or_large_is_a_whole_picture(chunk: bytes) -> None:
    np.testing.assert_array_equal(canonical(open_image(with_chunk(stored(RAMP), chunk)), GRAY)[0], RAMP)


def test_the_orientation_counts_where_other_metadata_are_broken() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    upside_down = stored(RAMP[::-1, ::-1].copy(), exif=exif)
    text = png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 2_000_000))
    for data in (upside_down, with_chunk(upside_down, text)):
        np.testing.assert_array_equal(canonical(open_image(data), GRAY)[0], RAMP)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_other_formats_with_exif_that_is_none_are_whole_pictures(kind: str) -> None:
    image = Image.fromarray(RAMP).convert("RGB")
    plain = canonical(open_image(stored(image, kind, quality=90)), GRAY)
    broken = canonical(open_image(stored(image, kind, quality=90, exif=b"Exif\0\0no TIFF header at all")), GRAY)
    np.testing.assert_array_equal(broken, plain)


def test_pixels_that_are_damaged_stay_damaged_whatever_the_metadata() -> None:
    damaged = bytearray(stored(RAMP))
    damaged[damaged.index(b"IDAT") + 8] ^= 255
    with pytest.raises(UnusableImage, match="damaged or truncated"):
        open_image(with_chunk(bytes(damaged), png_chunk(b"eXIf", b"")))


def test_a_deep_gray_image_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = RAMP.astype(np.uint16) * 257
    lying = np.rot90(deep).copy()
    np.testing.assert_array_equal(canonical(open_image(stored(lying, exif=exif)), GRAY)[0], RAMP)


# ------------------------------------------------------------------ pages


def pages(*images: Image.Image, **options: Any) -> bytes:
    return stored(images[0], "TIFF", save_all=True, append_images=list(images[1:]), **options)


def test_a_file_of_several_pages_is_refused_and_not_cut_to_the_first() -> None:
    with pytest.raises(UnusableImage, match="several pages") as caught:
        open_image(pages(*(Image.new("L", (8, 8), value) for value in (0, 50, 100))))
    assert "a file of its own" in caught.value.cure
    assert open_image(pages(Image.new("L", (8, 8), 9))).size == (8, 8)


def test_smaller_copies_of_the_one_page_of_a_tiff_are_no_pages() -> None:
    large = Image.fromarray(RAMP)
    small = large.resize((4, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    both = pages(large, small)
    np.testing.assert_array_equal(canonical(open_image(both), GRAY)[0], RAMP)
    # The first one has to be the whole picture.
    with pytest.raises(UnusableImage, match="several pages"):
        open_image(stored(small, "TIFF", save_all=True, append_images=[large], tiffinfo={254: 1}))


# ------------------------------------------------------------------ files that are no images


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes(128) + b"DICM" + bytes(200), "a DICOM file: export it as 16-bit PNG or TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIF"),
        (b"\0\0\0\x18ftypmp42" + bytes(200), "a video"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\x93NUMPY\1\0" + bytes(100), "a NumPy array"),
        (b"%PDF-1.7\n" + bytes(100), "a PDF"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
    ],
)
def test_pictures_in_a_format_that_is_not_read_are_named_with_a_cure(data: bytes, reason: str) -> None:
    with pytest.raises(UnusableImage, match=reason):
        open_image(data)
