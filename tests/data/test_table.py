"""The canonical table: what is written is read back, by this package and by others."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from privimage.config.images import ImageConfig
from privimage.data.facts import Identity, SensitiveFacts, TableFacts
from privimage.data.table import TableWriter, decode_png, encode_png, iterate_images, read_images
from privimage.errors import DataError

NAMES = ("cat", "dog")


def some_images(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)


def write(folder: Path, images: np.ndarray, shard_rows: int = 50_000) -> list[Path]:
    image = ImageConfig(resolution=8, channels=images.shape[1])
    with TableWriter(folder, "images", NAMES, image, shard_rows) as table:
        for index, pixels in enumerate(images):
            table.add(pixels, index % 2, f"{index}.png")
    assert table.num_images == len(images)
    return [folder / name for name in table.files]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    for pixels in some_images(5, channels):
        np.testing.assert_array_equal(decode_png(encode_png(pixels)), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_rows_come_back_in_order_over_shards_and_row_groups(tmp_path: Path, channels: int) -> None:
    images = some_images(2700, channels)
    files = write(tmp_path, images, shard_rows=1300)
    assert [file.name for file in files] == [f"images-0000{shard}.parquet" for shard in range(3)]
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [2, 2, 1]
    found, labels = read_images(files)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, np.arange(2700) % 2)
    assert labels.dtype == np.int64 and found.dtype == np.uint8


def test_given_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    images = some_images(2700)
    files = write(tmp_path, images, shard_rows=1300)
    rows = np.array([2699, 0, 1299, 1300, 5, 5, 2000])
    found, labels = read_images(files, rows)
    np.testing.assert_array_equal(found, images[rows])
    np.testing.assert_array_equal(labels, rows % 2)
    nothing, no_labels = read_images(files, np.array([], dtype=np.int64))
    assert nothing.shape == (0, 1, 8, 8) and no_labels.shape == (0,)


def test_what_exceeds_the_memory_limit_lies_in_a_file_without_a_name(tmp_path: Path) -> None:
    images = some_images(2700)
    files = write(tmp_path, images, shard_rows=1300)
    spill = tmp_path / "spill"
    spill.mkdir()
    rows = np.array([2699, 0, 1299, 1300, 5, 5, 2000])
    for wanted in (None, rows):
        found, labels = read_images(files, wanted, spill=spill, memory_limit=100)
        assert isinstance(found, np.memmap) and found.flags.writeable
        in_memory, same_labels = read_images(files, wanted, spill=spill)
        assert not isinstance(in_memory, np.memmap)
        np.testing.assert_array_equal(found, in_memory)
        np.testing.assert_array_equal(labels, same_labels)
    assert not list(spill.iterdir())
    assert not isinstance(read_images(files, memory_limit=100)[0], np.memmap), "nobody allowed a file"


def test_a_folder_without_room_for_the_images_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, some_images(100))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            DataError, match=r"has no room for 0\.0 GiB of decoded images \(File too large\): free some"
        ):
            read_images(files, spill=tmp_path, memory_limit=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_whose_png_has_several_chunks_come_back_too(tmp_path: Path, channels: int) -> None:
    shape = (channels, 256, 256)
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    images[1] = 7
    assert [encode_png(pixels).count(b"IDAT") > 1 for pixels in images] == [True, False]
    with TableWriter(tmp_path, "images", NAMES, ImageConfig(resolution=256, channels=channels)) as table:
        for pixels in images:
            table.add(pixels, 0)
    np.testing.assert_array_equal(read_images([tmp_path / table.files[0]])[0], images)


def test_rows_beyond_the_table_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path, some_images(3))
    for row in (3, -1):
        with pytest.raises(DataError, match="holds 3 rows"):
            read_images(files, np.array([row]))


def test_iterating_yields_every_image_once(tmp_path: Path) -> None:
    images = some_images(2500)
    batches = list(iterate_images(write(tmp_path, images, shard_rows=1300), batch_size=400))
    assert all(len(batch) <= 400 for batch, _, _ in batches)
    np.testing.assert_array_equal(np.concatenate([batch for batch, _, _ in batches]), images)
    np.testing.assert_array_equal(np.concatenate([ids for _, _, ids in batches]), np.arange(2500))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels, _ in batches]), np.arange(2500) % 2)


def test_iterating_may_end_early(tmp_path: Path) -> None:
    batches = iterate_images(write(tmp_path, some_images(2500)), batch_size=100)
    assert len(next(batches)[0]) == 100
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_the_parquet_is_what_other_tools_expect(tmp_path: Path) -> None:
    images = some_images(4)
    (file,) = write(tmp_path, images)
    table = pq.read_table(file)
    assert [str(field.type) for field in table.schema] == ["int64", "int64", "struct<bytes: binary, path: string>"]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["label"]["names"] == ["cat", "dog"]
    assert json.loads(table.schema.metadata[b"label_names"]) == ["cat", "dog"]
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [0, 1, 2, 3] and rows[2]["image"]["path"] == "2.png"
    np.testing.assert_array_equal(decode_png(rows[3]["image"]["bytes"]), images[3])
    columns = {
        pq.ParquetFile(file).metadata.row_group(0).column(i).path_in_schema: pq.ParquetFile(file)
        .metadata.row_group(0)
        .column(i)
        for i in range(4)
    }
    assert columns["image.bytes"].compression == "UNCOMPRESSED" and columns["label"].compression == "ZSTD"


def test_the_same_images_make_the_same_bytes(tmp_path: Path) -> None:
    (one,) = write(tmp_path / "one", some_images(50))
    (two,) = write(tmp_path / "two", some_images(50))
    assert one.read_bytes() == two.read_bytes()


def test_a_failure_leaves_no_file_behind(tmp_path: Path) -> None:
    image = ImageConfig(resolution=8, channels=1)
    with pytest.raises(KeyError), TableWriter(tmp_path, "images", NAMES, image, shard_rows=2) as table:
        for pixels in some_images(5):
            table.add(pixels, 0)
        raise KeyError
    assert list(tmp_path.iterdir()) == [] and table.files == []


def test_a_table_has_no_final_name_before_it_is_complete(tmp_path: Path) -> None:
    with TableWriter(tmp_path, "images", NAMES, ImageConfig(resolution=8, channels=1), shard_rows=2) as table:
        for pixels in some_images(5):
            table.add(pixels, 0)
        assert not list(tmp_path.glob("*.parquet"))
    assert len(list(tmp_path.iterdir())) == 3


def test_writing_again_replaces_the_earlier_table(tmp_path: Path) -> None:
    write(tmp_path, some_images(6), shard_rows=2)
    files = write(tmp_path, some_images(2), shard_rows=2)
    assert sorted(tmp_path.glob("*.parquet")) == files


def test_an_empty_table_can_be_read(tmp_path: Path) -> None:
    files = write(tmp_path, some_images(0))
    images, labels = read_images(files)
    assert images.shape == (0, 1, 8, 8) and labels.shape == (0,) and list(iterate_images(files, 10)) == []


def test_an_image_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(1, 8, 8\)"):
        write_one = TableWriter(tmp_path, "images", NAMES, ImageConfig(resolution=8, channels=1))
        with write_one as table:
            table.add(np.zeros((3, 8, 8), np.uint8), 0)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no")
    for name in ("text.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=name):
            read_images([tmp_path / name])
    with pytest.raises(DataError, match="No files"):
        read_images([])


def test_facts_survive_json() -> None:
    facts = TableFacts(num_images=3, class_names=NAMES, resolution=8, channels=1, identity="ab")
    assert TableFacts.from_json(facts.to_json()) == facts
    private = SensitiveFacts(
        num_train=3, num_validation=0, num_test=1, class_names=NAMES, resolution=8, channels=1, identity="ab"
    )
    assert SensitiveFacts.from_json(private.to_json()) == private
    for text in ("", "[]", private.to_json()):
        with pytest.raises(DataError):
            TableFacts.from_json(text)


def test_the_identity_depends_on_the_multiset_only() -> None:
    def identity(*pairs: tuple[bytes, int]) -> str:
        collected = Identity()
        for digest, label in pairs:
            collected.add(digest, label)
        return collected.hexdigest()

    a, b = bytes(32), bytes([1] * 31 + [0])
    assert identity((a, 0), (b, 1)) == identity((b, 1), (a, 0))
    assert len({identity((a, 0), (b, 1)), identity((a, 1), (b, 0)), identity((a, 0)), identity((a, 0), (a, 0))}) == 4
