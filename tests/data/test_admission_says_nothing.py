"""What is public of an admission that fails does not depend on how it fails: neither how often, nor where, nor as what."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privimage.config.images import ImageConfig, SensitiveConfig
from privimage.config.sources import FolderSource
from privimage.data.admission import SensitiveDataProblem, admit_sensitive
from privimage.data.decode import canonical, open_image


def sensitive(root: Path) -> SensitiveConfig:
    return SensitiveConfig(train=FolderSource(kind="folder", path=str(root)), test_fraction=0.3)


@pytest.mark.parametrize("damaged", [1, 7])
def test_a_message_does_not_tell_how_many_images_cannot_be_used(
    damaged: int, tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    """Whoever may add an image to the sensitive ones could ask by that number whether it is there already."""
    make_folder(tmp_path / "in", per_class=30)
    for number in range(damaged):
        (tmp_path / "in" / "cat" / f"{number:03d}.png").write_bytes(b"no image")
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "out", lambda purpose: bytes(32))
    assert not re.search(r"\d", str(caught.value))
    assert len(caught.value.details) == damaged, "which is told in private"


def test_what_libraries_say_of_an_image_is_not_passed_on(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    """Pillow warns of EXIF that is cut off, and names what it found in it."""
    make_folder(tmp_path / "in", per_class=30)
    pixels = np.random.default_rng(7).integers(0, 256, (8, 8), dtype=np.uint8)
    cut_off = struct.pack("<HHII", 0x10F, 2, 100, 500)  # the camera's name, 100 letters, none of which is there
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + cut_off + bytes(4))
    (tmp_path / "in" / "cat" / "odd.jpg").write_bytes(buffer.getvalue())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        canonical(open_image(buffer.getvalue()), gray8)
        assert heard, "it does warn"
        heard.clear()
        admit_or_refuse(tmp_path, gray8)
    assert heard == []


def admit_or_refuse(folder: Path, image: ImageConfig) -> None:
    try:
        admit_sensitive(sensitive(folder / "in"), image, folder / "out", lambda purpose: bytes(32))
    except SensitiveDataProblem:
        return
