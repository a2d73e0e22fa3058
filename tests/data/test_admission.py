"""What is admitted, what is refused, and that refusing sensitive images gives nothing away."""

from __future__ import annotations

import io
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from privimage.config import DemoDigits, FolderSource, ImageConfig, ParquetSource, SensitiveConfig
from privimage.data.admission import SensitiveDataProblem, admit_public, admit_sensitive
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.data.splits import split_of
from privimage.data.table import read_images
from privimage.errors import DataError

SPLITS = ("train", "validation", "test")


def folder(path: Path) -> FolderSource:
    return FolderSource(path=str(path))


def sensitive(path: Path, test: Path | None = None, **fractions: float) -> SensitiveConfig:
    fractions = fractions or {"validation_fraction": 0.2, "test_fraction": 0.3}
    return SensitiveConfig(train=folder(path), test=folder(test) if test else None, **fractions)


def rows(out: Path, split: str) -> set[tuple[int, bytes]]:
    images, labels = read_images(sorted(out.glob(f"{split}-*.parquet")))
    return {(int(label), pixels.tobytes()) for pixels, label in zip(images, labels, strict=True)}


def test_public_images_are_sorted_by_label_and_keep_their_paths(tmp_path: Path, gray8: ImageConfig) -> None:
    encoded = [{"bytes": _png(number), "path": f"{number}.png"} for number in range(7)]
    labels = [1, 0, 1, 0, 0, 1, 0]
    pq.write_table(pa.table({"image": encoded, "label": labels}), tmp_path / "in.parquet")
    facts = admit_public(ParquetSource(path=str(tmp_path / "in.parquet")), gray8, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "images-00000.parquet").to_pylist()
    assert [row["label"] for row in table] == sorted(labels) and [row["id"] for row in table] == list(range(7))
    assert [row["image"]["path"] for row in table] == [f"{n}.png" for n in (1, 3, 4, 6, 0, 2, 5)]
    images, _ = read_images([tmp_path / "out" / "images-00000.parquet"])
    np.testing.assert_array_equal(images[0, 0], _pixels(1))
    assert TableFacts.from_json((tmp_path / "out" / "facts.json").read_text()) == facts
    assert (facts.num_images, facts.class_names, facts.resolution, facts.channels) == (7, ("0", "1"), 8, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["facts.json", "images-00000.parquet"]


def test_public_problems_are_counted_and_five_are_named(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=10)
    for index in range(7):
        (tmp_path / "in" / "cat" / f"{index:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"7 of 20 public images .* and 2 more") as caught:
        admit_public(folder(tmp_path / "in"), gray8, tmp_path / "out")
    assert str(caught.value).count("the file is empty") == 5 and "cat/004.png" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_public_categories_without_images_are_refused(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    (make_folder(tmp_path / "in") / "emu").mkdir()
    with pytest.raises(DataError, match=r"1 public categories have no images.*emu"):
        admit_public(folder(tmp_path / "in"), gray8, tmp_path / "out")


def test_sensitive_images_are_split_completely_and_disjointly(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=60)
    facts = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "out")
    split = {name: rows(tmp_path / "out", name) for name in SPLITS}
    assert sum(len(part) for part in split.values()) == len(set.union(*split.values())) == 120
    assert (facts.num_train, facts.num_validation, facts.num_test) == tuple(len(split[name]) for name in SPLITS)
    assert 40 <= facts.num_train <= 80 and 20 <= facts.num_test <= 55
    assert SensitiveFacts.from_json((tmp_path / "out" / "facts.json").read_text()) == facts


def test_the_sensitive_tables_hold_no_file_names(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    admit_sensitive(sensitive(make_folder(tmp_path / "in")), gray8, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.parquet"):
        assert {row["path"] for row in pq.read_table(file).column("image").to_pylist()} == {None}
        assert b".png" not in file.read_bytes()


def test_without_a_validation_fraction_there_is_no_validation_table(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    facts = admit_sensitive(sensitive(make_folder(tmp_path / "in"), test_fraction=0.5), gray8, tmp_path / "out")
    assert facts.num_validation == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "facts.json", "test-00000.parquet", "train-00000.parquet"
    }  # fmt: skip


def test_splits_and_identity_survive_renaming_reordering_and_another_container(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=30)
    before = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "before")
    for number, path in enumerate(sorted((tmp_path / "in").rglob("*.png"), reverse=True)):
        Image.open(path).save(path.with_name(f"{number}.bmp"))
        path.unlink()
    after = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "after")
    assert before == after
    for split in SPLITS:
        assert rows(tmp_path / "before", split) == rows(tmp_path / "after", split)


def test_removing_one_image_moves_no_other(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=30)
    before = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "before")
    (tmp_path / "in" / "dog" / "007.png").unlink()
    after = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "after")
    changes = [rows(tmp_path / "before", split) ^ rows(tmp_path / "after", split) for split in SPLITS]
    assert sorted(len(change) for change in changes) == [0, 0, 1]
    assert all(rows(tmp_path / "after", split) <= rows(tmp_path / "before", split) for split in SPLITS)
    assert before.identity != after.identity


def test_the_identity_does_not_depend_on_the_canonical_form(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    config = sensitive(make_folder(tmp_path / "in"))
    small = admit_sensitive(config, gray8, tmp_path / "small")
    large = admit_sensitive(config, ImageConfig(resolution=16, channels=3), tmp_path / "large")
    assert small.identity == large.identity and small.num_train == large.num_train


def test_the_share_of_a_split_is_its_fraction() -> None:
    digests = [number.to_bytes(32, "big") for number in range(20_000)]
    found = [split_of(digest, 0.2, 0.1) for digest in digests]
    assert abs(found.count("test") / 20_000 - 0.2) < 0.015 and abs(found.count("validation") / 20_000 - 0.1) < 0.01
    assert {split_of(digest, 0.0, 0.0) for digest in digests} == {"train"}


def test_a_test_source_is_the_test_split(tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig) -> None:
    make_folder(tmp_path / "in", per_class=20)
    make_folder(tmp_path / "held-out", per_class=3, first=500)
    config = sensitive(tmp_path / "in", tmp_path / "held-out", test_fraction=0.5)
    facts = admit_sensitive(config, gray8, tmp_path / "out")
    assert (facts.num_train, facts.num_test) == (40, 6)
    # Another test set, or none, is no other data set: its budget stays the same.
    alone = admit_sensitive(sensitive(tmp_path / "in", test_fraction=0.5), gray8, tmp_path / "alone")
    assert alone.identity == facts.identity


def test_a_test_source_with_other_classes_is_refused(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in")
    make_folder(tmp_path / "held-out", ("cat", "emu"), first=500)
    with pytest.raises(DataError, match="other classes"):
        admit_sensitive(sensitive(tmp_path / "in", tmp_path / "held-out"), gray8, tmp_path / "out")


def everything_shown(error: BaseException) -> str:
    shown = "".join(traceback.format_exception(error))
    return re.sub(r"line \d+", "line", shown) + repr(error.__cause__) + repr(error.__context__)


def problem(config: SensitiveConfig, image: ImageConfig, out: Path) -> SensitiveDataProblem:
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(config, image, out)
    assert not list(out.iterdir())
    return caught.value


def test_an_image_in_both_sources_is_refused_without_saying_which(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in")
    make_folder(tmp_path / "held-out", first=500)
    shutil.copy(tmp_path / "in" / "dog" / "003.png", tmp_path / "held-out" / "dog" / "secret.png")
    error = problem(sensitive(tmp_path / "in", tmp_path / "held-out"), gray8, tmp_path / "out")
    assert "both sensitive.train and sensitive.test" in str(error) and "secret" not in everything_shown(error)
    assert error.details == ["test: dog/secret.png: the same image is in sensitive.train"]


def test_sensitive_problems_are_listed_in_private_and_told_in_general(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=9)
    (tmp_path / "in" / "dog" / "secret.png").write_bytes(b"no image")
    (tmp_path / "in" / "emu").mkdir()
    error = problem(sensitive(tmp_path / "in"), gray8, tmp_path / "out")
    assert error.details[0] == "train: dog/secret.png: not an image in a known format"
    assert "class emu: no image" in error.details
    shown = everything_shown(error)
    assert error.__cause__ is None and error.__context__ is None
    assert not any(word in shown for word in ("secret", "emu", "no image", "dog", "19"))


def test_the_message_about_sensitive_images_is_always_the_same(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "one")
    (tmp_path / "one" / "cat" / "x.png").write_bytes(b"")
    (make_folder(tmp_path / "two") / "emu").mkdir()
    errors = [problem(sensitive(tmp_path / name), gray8, tmp_path / "out") for name in ("one", "two")]
    assert str(errors[0]) == str(errors[1])


def test_a_class_that_misses_a_split_is_refused(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    config = sensitive(make_folder(tmp_path / "in", per_class=1), test_fraction=0.5)
    assert all("no image in the" in line for line in problem(config, gray8, tmp_path / "out").details)


def test_sensitive_labels_out_of_range_are_refused(tmp_path: Path, gray8: ImageConfig) -> None:
    encoded = [{"bytes": _png(number), "path": "secret.png"} for number in range(40)]
    table = pa.table({"image": encoded, "label": [0, 1] * 19 + [2, None]})
    pq.write_table(table.replace_schema_metadata({"label_names": '["a", "b"]'}), tmp_path / "in.parquet")
    config = SensitiveConfig(train=ParquetSource(path=str(tmp_path / "in.parquet")), test_fraction=0.5)
    details = problem(config, gray8, tmp_path / "out").details
    assert details == [f"train: secret.png: label {label} is missing or outside 0..1" for label in (2, -1)]


def test_a_parquet_file_that_breaks_half_way_gives_nothing_away(tmp_path: Path, gray8: ImageConfig) -> None:
    encoded = [{"bytes": _png(number), "path": "secret.png"} for number in range(300)]
    file = tmp_path / "in.parquet"
    table = pa.table({"image": encoded, "label": [0, 1] * 150})
    pq.write_table(table, file, row_group_size=150, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(data)
    config = SensitiveConfig(train=ParquetSource(path=str(file)), test_fraction=0.5)
    error = problem(config, gray8, tmp_path / "out")
    assert "in.parquet" in error.details[0] and "in.parquet" not in everything_shown(error)


def test_missing_sensitive_sources_are_plain_data_errors(tmp_path: Path, gray8: ImageConfig) -> None:
    with pytest.raises(DataError, match="No folder at") as caught:
        admit_sensitive(sensitive(tmp_path / "missing"), gray8, tmp_path / "out")
    assert not isinstance(caught.value, SensitiveDataProblem)


def test_progress_sees_every_image_and_the_total(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    seen: list[tuple[str, int | None, int]] = []

    def count(items: Iterable[Any], description: str, total: int | None, /) -> Iterable[Any]:
        kept = list(items)
        seen.append((description, total, len(kept)))
        return kept

    make_folder(tmp_path / "in", per_class=30)
    make_folder(tmp_path / "held-out", per_class=3, first=500)
    admit_public(folder(tmp_path / "in"), gray8, tmp_path / "public", count)
    admit_sensitive(sensitive(tmp_path / "in", tmp_path / "held-out"), gray8, tmp_path / "private", count)
    assert seen == [("public images", 60, 60), ("sensitive images", 60, 60), ("sensitive test images", 6, 6)]


def test_the_demo_digits_are_admitted_pixel_for_pixel(tmp_path: Path, gray8: ImageConfig) -> None:
    facts = admit_sensitive(SensitiveConfig(train=DemoDigits()), gray8, tmp_path)
    assert facts.num_train + facts.num_test == 1797 and 300 < facts.num_test < 420
    images, labels = read_images(sorted(tmp_path.glob("train-*.parquet")))
    assert images.max() == 255 and np.bincount(labels).min() > 100


def test_real_shared_images_are_admitted(tmp_path: Path) -> None:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    data = Path(os.environ.get("PRIVIMAGE_SHARED_DATA", beside))
    if not (data / "cifar10_test.parquet").is_file():
        pytest.skip("the shared image sets are not on this machine")
    source = ParquetSource(path=str(data / "cifar10_test.parquet"))
    facts = admit_public(source, ImageConfig(resolution=16, channels=3), tmp_path)
    assert facts.num_images == 4000 and facts.class_names[0] == "airplane"
    images, labels = read_images(sorted(tmp_path.glob("*.parquet")))
    assert images.shape == (4000, 3, 16, 16) and np.bincount(labels).tolist() == [400] * 10


def _pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(number)).save(buffer, "PNG")
    return buffer.getvalue()
