"""The index of the public set equals a direct computation, takes bounded memory, and finds rows by their category."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from privimage.config.classifier import ClassifierConfig
from privimage.config.images import ImageConfig
from privimage.data import table
from privimage.data.table import TableWriter, encode_png, iterate_images
from privimage.errors import DataError
from privimage.semantics import index as index_module
from privimage.semantics.classifier import ResNet, new_classifier, predict
from privimage.semantics.index import (
    INDEX_FILE,
    INDEX_GROUP,
    TOP,
    IndexWriter,
    index_schema,
    open_index,
    predictions_schema,
    require_table,
    rows_of_categories,
    write_index,
    write_predictions,
)
from privimage.store.files import Store

CPU = torch.device("cpu")
CATEGORIES = 12
SHARD_ROWS = 40
NAMES = [f"category {number}" for number in range(CATEGORIES)]
DIGEST = "d" * 64
Batch = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


@dataclass
class Indexed:
    folder: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    model: ResNet

    @property
    def index(self) -> pa.Table:
        return pq.read_table(self.folder / INDEX_FILE)

    @property
    def predictions(self) -> pa.Table:
        return pa.concat_tables(pq.read_table(file) for file in sorted(self.folder.glob("predictions-*.parquet")))


def tiny_model() -> ResNet:
    return new_classifier(ClassifierConfig(base_channels=8, blocks=(1, 1)), channels=1, num_categories=CATEGORIES)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    """100 images in three shards, sorted by category as the public table is, indexed in batches of 16."""
    folder = tmp_path_factory.mktemp("index")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    labels = np.sort(generator.integers(0, CATEGORIES - 1, 100))
    with TableWriter(folder / "table", "images", NAMES, ImageConfig(resolution=8, channels=1), SHARD_ROWS) as writer:
        for pixels, label in zip(images, labels.tolist(), strict=True):
            writer.add(pixels, label)
    model = tiny_model()
    files = [folder / "table" / name for name in writer.files]
    assert len(files) == 3
    predictions = [folder / f"predictions-{number:05d}.parquet" for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "PREDICTIONS_GROUP", 32)
        for file, table_file in zip(predictions, files, strict=True):
            write_predictions(file, iterate_images([table_file], 16), model, CPU)
    write_index(folder, predictions, category_names=NAMES, table_digest=DIGEST, num_images=100)
    return Indexed(folder=folder, images=images, labels=labels, model=model)


def test_each_image_has_one_row_in_table_order_sorted_by_category(indexed: Indexed) -> None:
    rows = indexed.index
    assert rows["id"].to_pylist() == indexed.predictions["id"].to_pylist() == list(range(100))
    assert rows["label"].to_pylist() == indexed.predictions["label"].to_pylist() == indexed.labels.tolist()
    assert (np.diff(rows["label"].to_numpy()) >= 0).all()


def test_what_is_streamed_equals_a_direct_computation(indexed: Indexed) -> None:
    rows = indexed.predictions
    logits, embeddings = predict(indexed.model, torch.from_numpy(indexed.images), CPU)
    probabilities = logits.softmax(1).numpy()
    order = np.argsort(-probabilities, axis=1)[:, :TOP]
    found_order = np.array(rows["top"].to_pylist())
    np.testing.assert_allclose(
        np.take_along_axis(probabilities, found_order, 1), np.take_along_axis(probabilities, order, 1), atol=1e-6
    )
    np.testing.assert_allclose(rows["confidence"].to_numpy(), probabilities.max(1), atol=1e-6)
    np.testing.assert_allclose(np.array(rows["embedding"].to_pylist()), embeddings.numpy(), rtol=2e-3, atol=1e-3)
    assert found_order.shape == (100, TOP)


def test_predictions_have_a_file_for_each_file_of_the_table_in_row_groups_of_their_size(indexed: Indexed) -> None:
    # Batches of at most 16 that end with a file of the table, which has 40 rows: 16, 16, 8.
    files = [pq.ParquetFile(file) for file in sorted(indexed.folder.glob("predictions-*.parquet"))]
    groups = [[file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] for file in files]
    assert groups == [[32, 8], [32, 8], [20]]


def test_shard_and_row_say_where_the_image_lies(indexed: Indexed) -> None:
    rows = indexed.index
    assert rows["shard"].to_pylist() == [number // SHARD_ROWS for number in range(100)]
    assert rows["row"].to_pylist() == [number % SHARD_ROWS for number in range(100)]


def test_the_schemas_are_the_stated_ones_with_the_names_of_the_categories(indexed: Indexed) -> None:
    schema = pq.read_schema(indexed.folder / INDEX_FILE)
    assert schema.equals(index_schema(NAMES, table_digest=DIGEST, num_images=100), check_metadata=True)
    assert json.loads(schema.metadata[b"label_names"]) == NAMES
    assert indexed.predictions.schema.equals(predictions_schema(indexed.model.embedding_size))


@pytest.mark.parametrize("categories", [[3], [0, 7, 2], [CATEGORIES - 1], [], list(range(CATEGORIES))])
def test_push_down_finds_exactly_the_rows_of_the_categories(indexed: Indexed, categories: list[int]) -> None:
    rows = rows_of_categories(open_index(indexed.folder / INDEX_FILE), categories)
    expected = np.flatnonzero(np.isin(indexed.labels, categories))
    np.testing.assert_array_equal(rows["id"].to_numpy(), expected)
    np.testing.assert_array_equal(rows["label"].to_numpy(), indexed.labels[expected])
    assert rows.equals(indexed.index.take(pa.array(expected)))


def test_fewer_categories_than_the_top_list_holds_are_all_listed(tmp_path: Path) -> None:
    model = new_classifier(ClassifierConfig(base_channels=8, blocks=(1,)), channels=1, num_categories=3)
    batch = np.zeros((2, 1, 8, 8), dtype=np.uint8), np.array([0, 2]), np.array([0, 1])
    write_predictions(tmp_path / "predictions-00000.parquet", [batch], model, CPU)
    found = pq.read_table(tmp_path / "predictions-00000.parquet")["top"].to_pylist()
    assert [sorted(row) for row in found] == [[0, 1, 2]] * 2


def many_rows(folder: Path, num_rows: int, num_categories: int) -> Path:
    """An index of so many rows, without predictions, by the real writer."""
    folder.mkdir()
    with IndexWriter(
        folder,
        category_names=[str(number) for number in range(num_categories)],
        table_digest=DIGEST,
        shard_sizes=[num_rows],
    ) as writer:
        for at in range(0, num_rows, INDEX_GROUP):
            ids = np.arange(at, min(at + INDEX_GROUP, num_rows))
            writer.add(ids, (ids * num_categories // num_rows).astype(np.int32))
    return folder / INDEX_FILE


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million rows of 1,000 categories."""
    return many_rows(tmp_path_factory.mktemp("large") / "index", 1_000_000, 1000)


def test_row_groups_without_a_wanted_category_are_skipped(large: Path) -> None:
    (fragment,) = open_index(large).get_fragments()
    assert len(fragment.row_groups) == 16
    assert len(fragment.subset(ds.field("label").isin([5, 6, 500])).row_groups) == 2
    assert rows_of_categories(open_index(large), [5, 6, 500])["label"].unique().to_pylist() == [5, 6, 500]


def test_a_row_takes_less_than_a_tenth_of_a_byte(large: Path) -> None:
    assert large.stat().st_size < 100_000


def test_the_same_rows_are_found_on_s3_by_arrows_own_file_system(s3_bucket: str, large: Path) -> None:
    store = Store.open(f"s3://{s3_bucket}/store")
    store.upload(large, "some/index.parquet")
    filesystem, root = store.arrow_filesystem()
    categories = list(range(0, 1000, 100))
    remote = rows_of_categories(open_index(f"{root}/some/index.parquet", filesystem), categories)
    assert remote.num_rows == 10_000 and remote.equals(rows_of_categories(open_index(large), categories))


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, batch_size = 50_000, 256
    png = encode_png(np.zeros((1, 8, 8), dtype=np.uint8))
    with TableWriter(tmp_path, "images", ["a", "b"], ImageConfig(resolution=8, channels=1), 20_000) as writer:
        for number in range(rows):
            writer.add_png(png, number * 2 // rows)
    decoded = 0
    decode_all = table._decode_all

    def counting(encoded: list[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
        nonlocal decoded
        decoded += len(encoded)
        return decode_all(encoded, shape)

    monkeypatch.setattr(table, "_decode_all", counting)
    monkeypatch.setattr(index_module, "INDEX_GROUP", 2048)
    monkeypatch.setattr(index_module, "PREDICTIONS_GROUP", 1024)
    images_held, arrow_bytes = [], []

    def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
        passed = 0
        for batch in batches:
            images_held.append(decoded - passed)
            arrow_bytes.append(pa.total_allocated_bytes())
            yield batch
            passed += len(batch[0])

    model = new_classifier(ClassifierConfig(base_channels=4, blocks=(1,)), channels=1, num_categories=2)
    before = pa.total_allocated_bytes()
    files = [tmp_path / name for name in writer.files]
    write_predictions(tmp_path / "predictions.parquet", watched(iterate_images(files, batch_size)), model, CPU)
    assert decoded == rows
    write_index(
        tmp_path, [tmp_path / "predictions.parquet"], category_names=["a", "b"], table_digest=DIGEST, num_images=rows
    )
    assert max(images_held) <= 2 * batch_size
    # Of the rows that wait for their row group (20 bytes each, and 36 with predictions), and two batches of PNGs.
    assert max(arrow_bytes) - before < 4 * 2**20
    assert max(arrow_bytes[len(arrow_bytes) // 2 :]) < 1.5 * max(arrow_bytes[: len(arrow_bytes) // 2])


def test_predictions_that_are_not_those_of_the_table_are_refused(tmp_path: Path) -> None:
    def write(num_images: int, *ids: list[int]) -> None:
        files = [tmp_path / f"{number}.parquet" for number in range(len(ids))]
        for file, part in zip(files, ids, strict=True):
            images = np.zeros((len(part), 1, 8, 8), dtype=np.uint8)
            write_predictions(file, [(images, np.zeros(len(part), np.int64), np.array(part))], tiny_model(), CPU)
        write_index(tmp_path, files, category_names=NAMES, table_digest=DIGEST, num_images=num_images)

    write(4, [0, 1], [2, 3])
    with pytest.raises(DataError, match="predictions for 3 images, but the image table has 4: make the table again"):
        write(4, [0, 1], [2])
    for wrong in ([3, 2], [0, 1], [3, 4]):
        with pytest.raises(DataError, match="goes on with 2 rows after row 2, whose numbers are not the next"):
            write(4, [0, 1], wrong)


def test_an_index_of_another_table_is_refused(indexed: Indexed) -> None:
    schema = pq.read_schema(indexed.folder / INDEX_FILE)
    require_table("The index", schema, digest=DIGEST, num_images=100)
    with pytest.raises(DataError, match="of image table dddddddddddd with 100 images, expected eeeeeeeeeeee with 100"):
        require_table("The index", schema, digest="e" * 64, num_images=100)
    with pytest.raises(DataError, match="with 100 images, expected dddddddddddd with 99: remove it and run stage"):
        require_table("The index", schema, digest=DIGEST, num_images=99)
    with pytest.raises(DataError, match="does not say which image table it was made of"):
        require_table("The index", schema.remove_metadata(), digest=DIGEST, num_images=100)


def test_files_that_are_no_index_are_refused(tmp_path: Path, indexed: Indexed) -> None:
    (tmp_path / "text.parquet").write_text("no")
    for name in ("text.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=f"{name} is missing or no Parquet"):
            open_index(tmp_path / name)
    with pytest.raises(DataError, match="has columns .*, and not those of an index: make the index again"):
        open_index(indexed.folder / "predictions-00000.parquet")
