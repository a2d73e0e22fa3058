"""Class names are public: what cannot be published is refused when a source is opened, whatever its kind."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privimage.config.sources import DemoDigits, DemoGlyphs, ParquetSource
from privimage.data.class_names import check_class_names
from privimage.data.records import Source
from privimage.data.sources import open_source
from privimage.errors import DataError


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty or blank"),
        (" \u00a0", "is empty or blank"),
        ("cat ", "begins or ends with a blank"),
        ("\u3000cat", "begins or ends with a blank"),
        ("Gr\udcfcn", "is not UTF-8"),
        ("\ud800", "is not UTF-8"),
        ("cat\ndog", "control"),
        ("cat\x1b[31m", "control"),
        ("cat\u202egod", "cannot be seen"),
        ("c\u200bat", "cannot be seen"),
        ("cat\u2028dog", "control"),
    ],
)
def test_a_name_that_cannot_be_published_is_refused_by_every_source(name: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        Source(origin="it", class_names=("dog", name), num_images=1, images=lambda: iter(()))
    assert str(caught.value).isascii() and "\n" not in str(caught.value)


@pytest.mark.parametrize("twin", ["caf\u00e9", "cafe\u0301", "caf\u00e9\u200d"])
def test_names_that_look_the_same_are_refused(twin: str) -> None:
    with pytest.raises(DataError, match="two classes of the same name"):
        check_class_names("it", ("caf\u00e9", "tea", twin))


def test_names_of_all_languages_letters_of_both_cases_and_slashes_are_fine() -> None:
    check_class_names(
        "it",
        (
            "a",
            "A",
            "Gr\u00fcn",
            "\u732b",
            "AC/DC",
            "n/a",
            "\u0645\u06cc\u200c\u0631\u0648\u0645",
            "Cat dog",
            "\U0001f431",
        ),
    )


def test_the_demo_sets_have_names_that_can_be_published() -> None:
    assert len(open_source(DemoDigits()).class_names) == 10 and len(open_source(DemoGlyphs()).class_names) == 62


def test_a_parquet_table_is_no_exception(tmp_path: Path) -> None:
    for labels in (["cat", "cat "], ["caf\u00e9", "cafe\u0301"], ["a", "b\n"]):
        pq.write_table(pa.table({"image": pa.array([b"", b""], pa.binary()), "label": labels}), tmp_path / "in.parquet")
        with pytest.raises(DataError, match="rename"):
            open_source(ParquetSource(path=str(tmp_path / "in.parquet")))
