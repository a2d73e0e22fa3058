"""The index of the public set equals a direct computation, and finds the rows of categories without reading the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from privimage.config import ClassifierConfig, ImageConfig
from privimage.data.table import TableWriter, iterate_images
from privimage.semantics.classifier import ResNet, new_classifier, predict
from privimage.semantics.index import TOP, index_schema, rows_of_categories, write_index

CPU = torch.device("cpu")
CATEGORIES = 12
SHARD_ROWS = 40
NAMES = [f"category {number}" for number in range(CATEGORIES)]


@dataclass
class Indexed:
    path: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    model: ResNet
    count: int


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    """100 images in three shards, sorted by category as the public table is, indexed in batches of 16."""
    folder = tmp_path_factory.mktemp("index")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    labels = np.sort(generator.integers(0, CATEGORIES - 1, 100))
    with TableWriter(folder, "images", NAMES, ImageConfig(resolution=8, channels=1), SHARD_ROWS) as table:
        for pixels, label in zip(images, labels.tolist(), strict=True):
            table.add(pixels, label)
    model = new_classifier(ClassifierConfig(base_channels=8, blocks=(1, 1)), channels=1, num_categories=CATEGORIES)
    files = [folder / name for name in table.files]
    assert len(files) == 3
    count = write_index(
        folder / "index.parquet",
        iterate_images(files, 16),
        model,
        category_names=NAMES,
        shard_sizes=[pq.read_metadata(file).num_rows for file in files],
        device=CPU,
    )
    return Indexed(path=folder / "index.parquet", images=images, labels=labels, model=model, count=count)


def test_each_image_has_one_row_in_table_order_sorted_by_category(indexed: Indexed) -> None:
    table = pq.read_table(indexed.path)
    assert indexed.count == table.num_rows == 100
    assert table["id"].to_pylist() == list(range(100))
    assert table["label"].to_pylist() == indexed.labels.tolist()
    assert (np.diff(table["label"].to_numpy()) >= 0).all()


def test_what_is_streamed_equals_a_direct_computation(indexed: Indexed) -> None:
    table = pq.read_table(indexed.path)
    logits, embeddings = predict(indexed.model, torch.from_numpy(indexed.images), CPU)
    probabilities = logits.softmax(1).numpy()
    order = np.argsort(-probabilities, axis=1)[:, :TOP]
    found_order = np.array(table["top"].to_pylist())
    np.testing.assert_allclose(
        np.take_along_axis(probabilities, found_order, 1), np.take_along_axis(probabilities, order, 1), atol=1e-6
    )
    np.testing.assert_allclose(table["confidence"].to_numpy(), probabilities.max(1), atol=1e-6)
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), embeddings.numpy(), rtol=2e-3, atol=1e-3)
    assert found_order.shape == (100, TOP)


def test_shard_and_row_say_where_the_image_lies(indexed: Indexed) -> None:
    table = pq.read_table(indexed.path)
    assert table["shard"].to_pylist() == [number // SHARD_ROWS for number in range(100)]
    assert table["row"].to_pylist() == [number % SHARD_ROWS for number in range(100)]


def test_the_schema_is_the_stated_one_with_the_names_of_the_categories(indexed: Indexed) -> None:
    schema = pq.read_schema(indexed.path)
    assert schema.equals(index_schema(indexed.model.embedding_size, NAMES))
    assert json.loads(schema.metadata[b"label_names"]) == NAMES


@pytest.mark.parametrize("categories", [[3], [0, 7, 2], [CATEGORIES - 1], [], list(range(CATEGORIES))])
def test_push_down_finds_exactly_the_rows_of_the_categories(indexed: Indexed, categories: list[int]) -> None:
    ids, labels = rows_of_categories([indexed.path], categories)
    expected = np.flatnonzero(np.isin(indexed.labels, categories))
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(labels, indexed.labels[expected])
    assert ids.dtype == labels.dtype == np.int64


def test_fewer_categories_than_the_top_list_holds_are_all_listed(tmp_path: Path) -> None:
    model = new_classifier(ClassifierConfig(base_channels=8, blocks=(1,)), channels=1, num_categories=3)
    batch = np.zeros((2, 1, 8, 8), dtype=np.uint8), np.array([0, 2]), np.array([0, 1])
    write_index(tmp_path / "index.parquet", [batch], model, category_names=["a", "b", "c"], shard_sizes=[2], device=CPU)
    assert [sorted(row) for row in pq.read_table(tmp_path / "index.parquet")["top"].to_pylist()] == [[0, 1, 2]] * 2
