"""The private list: every refused file with its reason, by kinds, each with a cure; nothing of it in the message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from privimage.config.images import ImageConfig
from privimage.data.admission import SensitiveDataProblem
from privimage.data.problems import REPAIR, Problem, printable, private_list
from tests.data.test_admission import admit_sensitive, everything_shown, sensitive
from tests.data.test_odd_images import pages


def test_problems_are_grouped_by_their_cure_in_the_order_they_were_met() -> None:
    lines = [Problem("a.png: empty", "Get it."), Problem("b.tif: pages", "Split it."), Problem("c.png: cut", "Get it.")]
    text = private_list([*lines, "class emu: no image"])
    assert text == (
        "Get it. (2 found)\n  a.png: empty\n  c.png: cut\n\n"
        "Split it. (1 found)\n  b.tif: pages\n\n"
        "Look at the classes, their splits, and the source as a whole. (1 found)\n  class emu: no image\n"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Gr\udcfcn", r"Gr\udcfcn"),
        ("a\nb", r"a\nb"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\u2028b", r"a\u2028b"),
        ("Gr\u00fcn", "Gr\u00fcn"),
    ],
)
def test_a_name_is_one_line_whatever_it_holds(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert private_list([Problem(name, "Do.")]).encode().splitlines() == [b"Do. (1 found)", f"  {shown}".encode()]


def test_a_list_of_a_real_set_gives_file_reason_and_cure(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    root = make_folder(tmp_path / "in")
    (root / "cat" / "secret-1.png").write_bytes(b"")
    (root / "cat" / "secret-2.tif").write_bytes(pages(Image.new("L", (8, 8)), Image.new("L", (8, 8), 9)))
    (root / "dog" / "secret-3.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (root / "secret-4.png").write_bytes(b"?")
    (root / "dog" / "secret-5.png").write_bytes(b"")
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(sensitive(root), gray8, tmp_path / "out")
    assert "secret" not in everything_shown(caught.value)
    text = private_list(caught.value.details)
    kinds = [kind.splitlines() for kind in text.split("\n\n")]
    assert [[line.split(":")[1].strip() for line in lines] for _, *lines in kinds] == [
        ["cat/secret-1.png", "dog/secret-5.png"],
        ["cat/secret-2.tif"],
        ["dog/secret-3.dcm"],
        ["secret-4.png"],
    ]
    assert kinds[0][0] == f"{REPAIR} (2 found)"
    assert "a file of its own" in kinds[1][0] and "PNG" in kinds[2][0] and "folder of their class" in kinds[3][0]
