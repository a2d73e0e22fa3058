"""What C libraries find in sensitive files goes to the private list, and to nobody's terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from privimage.config.images import ImageConfig
from privimage.config.sources import FolderSource
from privimage.data import private_decoder
from privimage.data.admission import SensitiveDataProblem, admit_public
from privimage.data.decode import decode
from privimage.data.private_decoder import PrivateDecoder
from privimage.data.problems import UnusableImage
from privimage.errors import DataError, PrivimageError
from tests.data.test_admission import admit_sensitive, sensitive
from tests.data.test_odd_images import stored

GRAY = ImageConfig(resolution=8, channels=1)
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def damaged_tiff() -> bytes:
    """A TIFF of whose damage libtiff tells on standard error."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = bytearray(stored(pixels, "TIFF", compression="tiff_adobe_deflate"))
    data[600:606] = bytes(6)
    return bytes(data)


def test_a_damaged_public_tiff_makes_libtiff_speak(capfd: pytest.CaptureFixture[str]) -> None:
    """Without this the tests below would show nothing."""
    with pytest.raises(UnusableImage):
        decode(damaged_tiff(), GRAY)
    assert "Decod" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["train", "test"])
def test_what_libtiff_says_of_a_sensitive_file_is_in_the_private_list_alone(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str], place: str
) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test", first=500)
    (tmp_path / place / "cat" / "secret.tif").write_bytes(damaged_tiff())
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(sensitive(tmp_path / "train", tmp_path / "test"), GRAY, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    (line,) = caught.value.details
    assert line.startswith(f"{place}: cat/secret.tif: damaged or truncated image") and "[ZIPDecode: " in line


def test_progress_is_still_seen_while_sensitive_images_are_decoded(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "in")

    def show(items: Iterable[Any], description: str, total: int | None, /) -> Iterable[Any]:
        for number, item in enumerate(items):
            os.write(2, f"{number}\n".encode())
            yield item

    admit_sensitive(sensitive(tmp_path / "in"), GRAY, tmp_path / "out", show)
    assert capfd.readouterr().err == "".join(f"{number}\n" for number in range(80))


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (stored(RAMP), None),
        (stored(np.stack([RAMP, RAMP.T, RAMP], axis=2)), None),
        (stored(RAMP.astype(np.uint16) * 16), 12),
        (stored(RAMP.astype(np.uint16) * 16), None),
        (stored(Image.fromarray(RAMP).resize((20, 30)), "JPEG"), None),
    ],
)
@pytest.mark.parametrize("form", [GRAY, ImageConfig(resolution=12, channels=3, resize="pad")])
def test_images_are_what_they_are_when_decoded_in_this_process(
    tmp_path: Path, data: bytes, bits: int | None, form: ImageConfig
) -> None:
    with PrivateDecoder(form, tmp_path) as decoder:
        there, here = decoder(data, bits), decode(data, form, bits)
    np.testing.assert_array_equal(there.pixels, here.pixels)
    assert (there.digest, there.used_bits) == (here.digest, here.used_bits)


@pytest.mark.parametrize(
    "data", [b"", b"no image", stored(RAMP)[:50], bytes(128) + b"DICM"], ids=["empty", "text", "cut", "DICOM"]
)
def test_refusals_are_what_they_are_in_this_process(tmp_path: Path, data: bytes) -> None:
    with PrivateDecoder(GRAY, tmp_path) as decoder:
        refused = []
        for call in (decoder, lambda found: decode(found, GRAY)):
            with pytest.raises(UnusableImage) as caught:
                call(data)
            refused.append((str(caught.value), caught.value.cure))
        assert refused[0] == refused[1]
        assert decoder(stored(RAMP)).pixels.shape == (1, 8, 8)


def test_what_was_said_of_one_image_is_not_told_of_the_next(tmp_path: Path) -> None:
    with PrivateDecoder(GRAY, tmp_path) as decoder:
        for data, said in ((damaged_tiff(), True), (b"no image", False), (damaged_tiff(), True)):
            with pytest.raises(UnusableImage) as caught:
                decoder(data)
            assert ("[" in str(caught.value)) == said


def test_several_threads_get_their_own_answers(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8) for number in range(60)]
    with PrivateDecoder(GRAY, tmp_path) as decoder, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(decoder, map(stored, pictures)))
    assert all((one.pixels[0] == picture).all() for one, picture in zip(found, pictures, strict=True))


def test_a_file_over_which_the_decoder_ends_is_refused_and_the_next_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A library that crashes over a file: here a format whose decoder kills its process.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "from PIL import Image, ImageFile\n"
        "def die(file, name):\n"
        "    os.write(2, b'free(): invalid pointer\\n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Image.register_open('CRASH', die, lambda prefix: prefix.startswith(b'CRASH'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with PrivateDecoder(GRAY, tmp_path) as decoder:
        for _ in range(2):
            with pytest.raises(UnusableImage, match=r"ended over this file \(SIGKILL\) \[free\(\): invalid pointer\]"):
                decoder(b"CRASH and so on, more than a few bytes of it")
            np.testing.assert_array_equal(decoder(stored(RAMP)).pixels[0], RAMP)


def test_a_decoder_that_does_not_start_is_no_fault_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_decoder, "_search_path", lambda: "")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with PrivateDecoder(GRAY, tmp_path) as decoder, pytest.raises(PrivimageError, match="does not start") as caught:
        decoder(stored(RAMP))
    assert not isinstance(caught.value, DataError)


def test_nothing_is_left_of_the_decoders(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_folder(tmp_path / "in")
    open_before = len(os.listdir("/proc/self/fd"))
    admit_sensitive(sensitive(tmp_path / "in"), GRAY, tmp_path / "out")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not any(b"privimage.data.decoder" in name for name in names)
    assert len(os.listdir("/proc/self/fd")) == open_before


# ------------------------------------------------------------------ sets whose range is unclear


@pytest.mark.parametrize(("top", "bits", "admitted"), [(4095, None, False), (4095, 12, True), (65535, None, True)])
def test_a_set_of_radiographs_is_admitted_with_its_bits_and_refused_without(
    tmp_path: Path, top: int, bits: int | None, admitted: bool
) -> None:
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, top + 1, (8, 8)).astype(np.uint16)
            (tmp_path / "in" / name / f"{number}.png").write_bytes(stored(pixels))
    source = FolderSource(path=str(tmp_path / "in"), bits=bits)
    config = sensitive(tmp_path / "in").model_copy(update={"train": source})
    if admitted:
        assert admit_sensitive(config, GRAY, tmp_path / "out").num_train
        assert admit_public(source, GRAY, tmp_path / "public").num_images == 60
        return
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(config, GRAY, tmp_path / "out")
    (line,) = caught.value.details
    assert "all of them: of 60 images with 16 or 32 bits a channel, 60 need 12 bits or fewer" in line
    assert "bits" not in str(caught.value)
    with pytest.raises(DataError, match="60 need 12 bits or fewer"):
        admit_public(source, GRAY, tmp_path / "public")
