"""Private values of a run, collected while it goes, and a search for them in what it leaves behind.

The sensitive images are stored under names, with PNG texts and with EXIF that occur nowhere else. A spy takes down what
the library computes from them: Poisson batch sizes, losses, gradient norms, votes.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.func import grad

from privimage.data.table import encode_png
from privimage.privacy.clipping import ClippedSum
from tests.engine_spy import Call, intercept
from tests.pipeline_fixtures import SETTINGS, Place

__all__ = ["Spy", "files_below", "plant_images"]

# Typed Any: what is replaced in them is no part of their interface.
loop: Any = import_module("privimage.generators.training.finetune")
query: Any = import_module("privimage.stages.query")

NAMES = ("Erika_Musterfrau", "Patient-8315-Zx", "Diagnose_Qz77", "PlateWN4711")
PER_CLASS, CLASSES = 50, ("anna", "berta", "carla")
_NUMBER = re.compile(r"(?<![\d.])\d+\.\d+(?:e[-+]?\d+)?|(?<![\d.])\d+e[-+]?\d+", re.IGNORECASE)
_TIME = re.compile(r"\d\d:\d\d:\d\d\.\d+")
_DATA_URI = re.compile(r"base64,([A-Za-z0-9+/=]+)")
# A number of so many digits is no coincidence; among all the public numbers, one of fewer may be. Two of them are not.
FEWEST_DIGITS, SURE_DIGITS = 5, 7


def files_below(folder: Path, *, besides: str) -> dict[str, bytes]:
    """Every file by its name, but those below one folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if name.split("/")[0] != besides}


def plant_images(granted: Place, folder: Path) -> tuple[Spy, Place]:
    """Sensitive images with all that could give them away, and a store that does not know them yet.

    The store is a copy of `granted`, so that the public stages are there already.
    """
    random = np.random.default_rng(9)
    images = random.integers(0, 256, (len(CLASSES), PER_CLASS, 8, 8), dtype=np.uint8)
    for label, name in enumerate(CLASSES):
        (folder / "portraits" / name).mkdir(parents=True)
        for number, pixels in enumerate(images[label]):
            texts, exif = PngInfo(), Image.Exif()
            texts.add_text("Comment", f"{NAMES[1]} {number}")
            texts.add_itxt("Description", f"{NAMES[2]} {number}")
            exif[0x010E], exif[0x013B] = f"{NAMES[3]} {number}", NAMES[3]
            file = folder / "portraits" / name / f"{NAMES[0]}_{number}.png"
            Image.fromarray(pixels).save(file, pnginfo=texts, exif=exif)
    settings = copy.deepcopy(SETTINGS)
    settings["sensitive"]["train"] = {"kind": "folder", "path": str(folder / "portraits")}
    config = folder / "planted.yaml"
    config.write_text(yaml.safe_dump(settings))
    place = Place(config=config, folder=granted.copy_to(folder / "store").folder)
    return Spy(images=list(images.reshape(-1, 1, 8, 8))), place


@dataclass(kw_only=True)
class Spy:
    """What nobody outside may learn.

    Attributes:
        numbers: losses and gradient norms, as (what it is, value).
        rows: batch sizes in their order, and votes of each class, as (what it is, whole numbers).
        fail_in_step: fine-tuning fails in this step (from 1), with an error that tells all it can.
    """

    images: list[NDArray[np.uint8]]
    numbers: list[tuple[str, float]] = field(default_factory=list)
    rows: list[tuple[str, list[int]]] = field(default_factory=list)
    fail_in_step: int | None = None
    _sizes: list[int] = field(default_factory=list)

    def install(self, patch: pytest.MonkeyPatch, fail_in_step: int | None = None) -> None:
        """Look over the shoulder of query and fine-tuning."""
        self.fail_in_step = fail_in_step
        real_batch, real_histogram = loop.poisson_batch, query.vote_histogram

        def batch(*arguments: Any) -> NDArray[np.int64]:
            rows: NDArray[np.int64] = real_batch(*arguments)
            self._sizes.append(len(rows))
            self.rows.append(("batch sizes", list(self._sizes)))
            return rows

        def clipped_sum(call: Call) -> ClippedSum:
            images = call.images()
            for image in images[:2]:
                weights = dict(call.parameters)
                norms = [float(part.norm()) for part in grad(call.loss_of_image)(weights, *image).values()]
                loss = float(call.loss_of_image(weights, *image))
                self.numbers += [("loss", loss), ("gradient norm", math.hypot(*norms))]
            if len(self._sizes) == self.fail_in_step:
                told = f"{NAMES[0]}_7.png has loss {self.numbers[-2][1]!r} in a batch of {len(images)}"
                raise RuntimeError(f"{told}, after {self.rows}")
            clipped = call.go_on()
            self.numbers.append(("norm of a sum", float(clipped.value.norm())))
            return clipped

        def histogram(*arguments: Any) -> NDArray[np.int64]:
            counts: NDArray[np.int64] = real_histogram(*arguments)
            self.rows += [("votes", row.tolist()) for row in counts]
            return counts

        patch.setattr(loop, "poisson_batch", batch)
        intercept(patch, clipped_sum)
        patch.setattr(query, "vote_histogram", histogram)

    def to_json(self) -> str:
        """For another process; the images it has already."""
        return json.dumps({"numbers": self.numbers, "rows": self.rows})

    def load(self, text: str) -> None:
        """What `to_json` said."""
        told = json.loads(text)
        self.numbers = [(what, value) for what, value in told["numbers"]]
        self.rows = [(what, row) for what, row in told["rows"]]

    def found_in(self, places: Mapping[str, bytes]) -> list[str]:
        """Every private value that is somewhere in `places`, as "what it is: where"."""
        needles, spellings = self._needles(), self._spellings()
        found, doubtful = [], dict[str, dict[float, str]]()
        for where, data in {**{f"name of {name}": name.encode() for name in places}, **places}.items():
            for part in (data, *_unpacked(where, data)):
                found += [f"{what}: {where}" for what, needle in needles if needle in part]
                for token in {_normal(token) for token in _NUMBER.findall(_TIME.sub("", part.decode("latin-1")))}:
                    what, value = spellings.get(token, ("", 0.0))
                    if what and len(token.partition("e")[0]) >= SURE_DIGITS:
                        found.append(f"{what}: {where}")
                    elif what:
                        doubtful.setdefault(what, {})[value] = where
        return found + [
            f"{what}: {where}" for what, hits in doubtful.items() if len(hits) > 1 for where in hits.values()
        ]

    def examples(self) -> list[bytes]:
        """One of each kind, as a leak might write it; each has to be found."""
        losses, norms = ([value for kind, value in self.numbers if kind == what] for what in ("loss", "gradient norm"))
        votes = next(row for what, row in self.rows if what == "votes")
        sizes = next(row for what, row in self.rows if what == "batch sizes" and len(row) > 2)
        pixels = self.images[3]
        return [
            f"step 3: loss {losses[0]}".encode(),
            f'{{"loss":[{",".join(f"{loss:.5g}" for loss in losses)}]}}'.encode(),
            "\n".join(f"norm={norm:.6f}" for norm in norms).encode(),
            " ".join(f"{norm:.6e}!" for norm in norms).encode(),
            np.float64(norms[0]).tobytes(),
            f"{np.array(votes)}".encode(),
            json.dumps({"h": votes}).encode(),
            json.dumps(sizes, separators=(",", ":")).encode(),
            f"cannot read /data/{NAMES[0]}_12.png".encode(),
            NAMES[3].encode("utf-16-le"),
            b"..." + pixels.tobytes() + b"...",
            b"..." + encode_png(pixels),
            b'<img src="data:image/png;base64,' + base64.b64encode(encode_png(pixels)) + b'">',
        ]

    def _needles(self) -> list[tuple[str, bytes]]:
        needles = [("name", name.encode(code)) for name in NAMES for code in ("utf-8", "utf-16-le")]
        for pixels in self.images:
            needles += [("image", pixels.tobytes()), ("image", _compressed(encode_png(pixels)))]
        needles += [(what, struct.pack("<d", value)) for what, value in self.numbers if value]
        for what, row in self.rows:
            if len(row) > 2:
                needles += [(what, separator.join(map(str, row)).encode()) for separator in (", ", ",", " ", "\n")]
                needles.append((what, re.sub(r"\s+", " ", str(np.array(row)))[1:-1].strip().encode()))
        return needles

    def _spellings(self) -> dict[str, tuple[str, float]]:
        """Every number as it may be printed: rounded or cut off, after five digits and more."""
        spelled = {}
        for what, value in self.numbers:
            if math.isfinite(value) and value:
                digits, _, exponent = f"{abs(value):.20e}".partition("e")
                for count in range(FEWEST_DIGITS, 18):
                    for text in (f"{abs(value):.{count - 1}e}", f"{digits[: count + 1]}e{exponent}"):
                        spelled[_normal(text)] = (what, value)
        return {token: known for token, known in spelled.items() if len(token.partition("e")[0]) >= FEWEST_DIGITS}


def _normal(number: str) -> str:
    """One spelling for a positive number: its significant digits and the power of ten of the first, such as 12345e-2."""
    mantissa, _, exponent = number.lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    first = len(whole) - 1 - (len(whole + fraction) - len(digits))
    return f"{digits.rstrip('0')}e{first + int(exponent or 0)}"


def _compressed(png: bytes) -> bytes:
    """The pixel data inside a PNG file, as they are compressed."""
    at = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[at - 4 : at])
    return png[at + 4 : at + 4 + length]


def _unpacked(name: str, data: bytes) -> list[bytes]:
    """What is inside a file and not spelled out in it: columns of Parquet, pictures in HTML, pixels of PNG."""
    if data[:4] == b"PAR1":
        columns = pq.read_table(pa.BufferReader(data)).to_pydict()
        values = repr(columns).encode()
        return [values, *(image["bytes"] for image in columns.get("image", []))]
    if data[:4] == b"\x89PNG":
        return [np.asarray(Image.open(io.BytesIO(data))).tobytes()]
    pictures = [base64.b64decode(found[: len(found) // 4 * 4]) for found in _DATA_URI.findall(data.decode("latin-1"))]
    wrapped = re.sub(rb"\s+", b" ", data)
    return [*pictures, wrapped]
