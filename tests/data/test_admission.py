"""What is admitted, what is refused, and that refusing sensitive images gives nothing away."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from privimage.config.images import ImageConfig, SensitiveConfig
from privimage.config.sources import DemoDigits, FolderSource, ParquetSource
from privimage.data import admission
from privimage.data.admission import FINDINGS, MARKS, SensitiveDataProblem, Track, admit_public, no_progress
from privimage.data.decode import pixel_digest
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.data.marks import DIGESTS_FILE, MARKS_FILE, mark, read_digests
from privimage.data.splits import split_rows, split_sizes
from privimage.data.table import read_images
from privimage.errors import DataError

SPLITS = ("train", "validation", "test")


def folder(path: Path) -> FolderSource:
    return FolderSource(path=str(path))


def sensitive(path: Path, test: Path | None = None, **fractions: float) -> SensitiveConfig:
    fractions = fractions or {"validation_fraction": 0.2, "test_fraction": 0.3}
    return SensitiveConfig(train=folder(path), test=folder(test) if test else None, **fractions)


def key_for(purpose: str) -> bytes:
    """As a store has it: a secret for each purpose."""
    return hashlib.sha256(f"secret of these tests, for {purpose}".encode()).digest()


def admit_sensitive(
    config: SensitiveConfig, image: ImageConfig, out: Path, progress: Track = no_progress
) -> SensitiveFacts:
    return admission.admit_sensitive(config, image, out, key_for, progress)


def findings(out: Path) -> list[str]:
    return list(json.loads((out / FINDINGS).read_text()))


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "digests.parquet", "facts.json", "images-00000.parquet"
    ]  # fmt: skip
    assert read_digests(tmp_path / "out" / DIGESTS_FILE) == [
        pixel_digest(Image.fromarray(_pixels(n))) for n in (1, 3, 4, 6, 0, 2, 5)
    ]


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
    assert (facts.num_train, facts.num_validation, facts.num_test) == (60, 24, 36)
    assert SensitiveFacts.from_json((tmp_path / "out" / "facts.json").read_text()) == facts


def test_the_sensitive_tables_hold_no_file_names(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    admit_sensitive(sensitive(make_folder(tmp_path / "in")), gray8, tmp_path / "out")
    for file in (tmp_path / "out").glob("t*.parquet"):
        assert {row["path"] for row in pq.read_table(file).column("image").to_pylist()} == {None}
        assert b".png" not in file.read_bytes()


def test_without_a_validation_fraction_there_is_no_validation_table(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    facts = admit_sensitive(sensitive(make_folder(tmp_path / "in"), test_fraction=0.5), gray8, tmp_path / "out")
    assert facts.num_validation == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "facts.json", "findings.json", "marks.parquet", "test-00000.parquet", "train-00000.parquet"
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


def test_replacing_one_image_replaces_at_most_one_of_each_split_and_changes_no_size(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=30)
    before = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "before")
    moved = []
    for number in range(12):
        (tmp_path / "in" / "dog" / "007.png").write_bytes(_png(50_000 + number))
        after = admit_sensitive(sensitive(tmp_path / "in"), gray8, tmp_path / "after")
        assert replace(after, identity="") == replace(before, identity="")
        left = {split: rows(tmp_path / "before", split) - rows(tmp_path / "after", split) for split in SPLITS}
        entered = {split: rows(tmp_path / "after", split) - rows(tmp_path / "before", split) for split in SPLITS}
        assert all(len(left[split]) == len(entered[split]) <= 1 for split in SPLITS)
        moved.append(sum(map(len, left.values())))
    assert set(moved) > {1}, "some cross a border, some do not"


def test_the_sizes_of_splits_are_a_function_of_public_numbers(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    """An attack that worked: with a fraction just below and just above an image's hash, sizes differed for a member only."""
    one, other = (
        make_folder(tmp_path / "one", per_class=25),
        make_folder(tmp_path / "other", per_class=25, first=70_000),
    )
    for fraction in (0.2, 0.2099, 0.21, 0.2101, 0.333, 0.5):
        config = {"test_fraction": fraction, "validation_fraction": 0.1}
        facts = [admit_sensitive(sensitive(root, **config), gray8, tmp_path / "out") for root in (one, other)]
        assert replace(facts[0], identity="") == replace(facts[1], identity="")
        sizes = split_sizes(50, fraction, 0.1)
        assert (facts[0].num_train, facts[0].num_validation, facts[0].num_test) == tuple(map(sizes.get, SPLITS))


def test_nobody_knows_the_order_without_the_key() -> None:
    digests = [number.to_bytes(32, "big") for number in range(1000)]
    sizes = split_sizes(1000, 0.2, 0.1)
    one, other = (split_rows(digests, [0] * 1000, sizes, key) for key in (b"1" * 32, b"2" * 32))
    assert len({*one["test"]} & {*other["test"]}) < 90  # 40 in the mean, with a deviation of 5
    assert (split_rows(digests, [0] * 1000, sizes, b"1" * 32)["test"] == one["test"]).all()


def test_fractions_that_leave_no_training_image_are_refused() -> None:
    with pytest.raises(DataError, match=r"leave -2 of 10 images for training"):
        split_sizes(10, 0.8, 0.4)


def test_copies_of_a_training_image_are_not_among_the_test_images(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=20)
    for number in range(40):  # half of all are one picture, so a border falls among them
        (tmp_path / "in" / "cat" / f"same-{number}.png").write_bytes(_png(7))
    facts = admit_sensitive(sensitive(tmp_path / "in", test_fraction=0.5), gray8, tmp_path / "out")
    same = (0, _pixels(7).tobytes())
    assert [same in rows(tmp_path / "out", split) for split in ("train", "test")].count(True) == 1
    assert (facts.num_train, facts.num_test) == (40, 40), "its public size counts them"


def test_every_sensitive_image_has_a_mark_that_tells_nothing_without_the_key(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    make_folder(tmp_path / "in", per_class=10)
    make_folder(tmp_path / "held-out", per_class=3, first=500)
    admit_sensitive(sensitive(tmp_path / "in", tmp_path / "held-out"), gray8, tmp_path / "out")
    files = [*(tmp_path / "in").rglob("*.png"), *(tmp_path / "held-out").rglob("*.png")]
    digests = [pixel_digest(Image.open(file)) for file in files]
    found = read_digests(tmp_path / "out" / MARKS_FILE)
    assert found == sorted(mark(digests, key_for(MARKS)))
    assert not {*found} & {*digests} and not {*found} & {*mark(digests, key_for("something else"))}


def test_the_identity_does_not_depend_on_the_canonical_form(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    config = sensitive(make_folder(tmp_path / "in"))
    small = admit_sensitive(config, gray8, tmp_path / "small")
    large = admit_sensitive(config, ImageConfig(resolution=16, channels=3), tmp_path / "large")
    assert small.identity == large.identity and small.num_train == large.num_train


def test_the_share_of_a_split_is_its_fraction() -> None:
    assert split_sizes(20_000, 0.2, 0.1) == {"test": 4000, "validation": 2000, "train": 14_000}
    assert split_sizes(10, 0.0, 0.0) == {"test": 0, "validation": 0, "train": 10}
    assert split_sizes(10, 0.01, 0.01) == {"test": 1, "validation": 1, "train": 8}


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


def test_an_image_in_both_sources_is_the_stewards_to_know_and_changes_nothing_else(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    """An attack that worked: a test source of one's own with a candidate was refused if the candidate was a member."""
    make_folder(tmp_path / "in")
    make_folder(tmp_path / "held-out", first=500)
    config = sensitive(tmp_path / "in", tmp_path / "held-out")
    shutil.copy(tmp_path / "held-out" / "dog" / "004.png", tmp_path / "held-out" / "dog" / "candidate.png")
    apart = admit_sensitive(config, gray8, tmp_path / "apart")
    shutil.copy(tmp_path / "in" / "dog" / "003.png", tmp_path / "held-out" / "dog" / "candidate.png")
    member = admit_sensitive(config, gray8, tmp_path / "member")
    assert member == apart and findings(tmp_path / "apart") == []
    assert findings(tmp_path / "member") == ["test: dog/candidate.png: the same image is in sensitive.train"]
    assert not rows(tmp_path / "member", "test") & rows(tmp_path / "member", "train")


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


def test_a_class_that_misses_a_split_is_the_stewards_to_know(
    tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    config = sensitive(make_folder(tmp_path / "in", per_class=1), test_fraction=0.5)
    facts = admit_sensitive(config, gray8, tmp_path / "out")
    assert (facts.num_train, facts.num_test) == (1, 1)
    assert len(findings(tmp_path / "out")) == 2 and all(
        "no image in the" in line for line in findings(tmp_path / "out")
    )


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
    assert (facts.num_train, facts.num_test) == (1438, 359)
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
    images, labels = read_images(sorted(tmp_path.glob("images-*.parquet")))
    assert images.shape == (4000, 3, 16, 16) and np.bincount(labels).tolist() == [400] * 10


def _pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(number)).save(buffer, "PNG")
    return buffer.getvalue()
