"""The selection: the best assignment there is, no category twice, and an even, repeatable cap."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privimage.config.images import ImageConfig
from privimage.data.table import TableWriter
from privimage.errors import ConfigError
from privimage.methods.selections.assignment import assign_categories
from privimage.semantics.index import INDEX_FILE, IndexWriter, open_index
from privimage.semantics.selection import cap_rows, classes_of, read_selected, select_rows


def shares(histogram: NDArray[np.float64]) -> NDArray[np.float64]:
    return histogram / np.maximum(np.maximum(histogram, 0).sum(1, keepdims=True), 1.0)


def worth(histogram: NDArray[np.float64], picks: list[list[int]]) -> float:
    return float(sum(shares(histogram)[number, category] for number, row in enumerate(picks) for category in row))


def greedy(histogram: NDArray[np.float64]) -> list[list[int]]:
    """The highest share of all first, one category a class."""
    left = shares(histogram).copy()
    picks: list[list[int]] = [[] for _ in histogram]
    for _ in histogram:
        number, category = np.unravel_index(left.argmax(), left.shape)
        picks[number] = [int(category)]
        left[number, :] = left[:, category] = -np.inf
    return picks


def test_the_assignment_is_better_than_a_greedy_one() -> None:
    histogram = np.array([[60.0, 50.0, 0.0], [50.0, 10.0, 40.0]])
    assert greedy(histogram) == [[0], [2]]
    assert assign_categories(histogram, 1) == [[1], [0]]
    assert worth(histogram, [[1], [0]]) > worth(histogram, [[0], [2]])


@given(st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_no_other_assignment_is_worth_more(seed: int) -> None:
    histogram = np.random.default_rng(seed).normal(20, 30, (3, 6))
    best = max(
        worth(histogram, [list(order[:2]), list(order[2:4]), list(order[4:])]) for order in permutations(range(6))
    )
    assert worth(histogram, assign_categories(histogram, 2)) == pytest.approx(best)


@pytest.mark.parametrize(("num_classes", "per_class"), [(1, 1), (3, 2), (5, 4), (4, 5)])
def test_each_class_has_its_number_of_categories_and_no_category_serves_two(num_classes: int, per_class: int) -> None:
    picks = assign_categories(np.random.default_rng(1).normal(0, 50, (num_classes, 20)), per_class)
    assert [len(row) for row in picks] == [per_class] * num_classes
    chosen = [category for row in picks for category in row]
    assert len(set(chosen)) == len(chosen) and set(chosen) <= set(range(20))


def test_a_class_lists_its_best_category_first() -> None:
    assert assign_categories(np.array([[1.0, 5.0, 3.0, -2.0]]), 3) == [[1, 2, 0]]


def test_a_small_class_is_not_outvoted_by_a_large_one() -> None:
    histogram = np.array([[5000.0, 4800.0, 0.0], [90.0, 5.0, 5.0]])
    assert histogram[0, 0] > 50 * histogram[1, 0]
    assert assign_categories(histogram, 1) == [[1], [0]]


def test_noise_alone_still_gives_a_valid_choice() -> None:
    first, second = assign_categories(np.full((2, 4), -3.0), 2)
    assert sorted(first + second) == [0, 1, 2, 3]


def test_more_categories_than_there_are_is_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match="asks for 12 categories for 3 classes, but the public set has 10: lower it"):
        assign_categories(np.zeros((3, 10)), 4)
    assign_categories(np.zeros((3, 10)), 3)


def test_categories_are_mapped_to_the_class_they_were_given_to() -> None:
    found = classes_of(np.array([4, 0, 2, 3, 2]), [[2, 0], [4]], num_categories=5)
    assert found.tolist() == [1, 0, 0, -1, 0]


def test_a_cap_takes_classes_evenly_and_leaves_to_others_what_one_has_not() -> None:
    classes = np.repeat([0, 1, 2], [5, 100, 400])
    rows = cap_rows(classes, 65, seed=0)
    assert np.bincount(classes[rows]).tolist() == [5, 30, 30]
    assert (np.diff(rows) > 0).all()


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 70), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_a_cap_is_as_even_as_it_can_be(labels: list[int], max_rows: int, seed: int) -> None:
    classes = np.array(labels, dtype=np.int64)
    rows = cap_rows(classes, max_rows, seed)
    assert len(rows) == len(set(rows.tolist())) == min(max_rows, len(classes))
    held, taken = np.bincount(classes, minlength=5), np.bincount(classes[rows], minlength=5)
    unfilled = taken < held
    if unfilled.any():
        assert taken.max() <= taken[unfilled].min() + 1


def test_a_cap_repeats_itself_for_a_seed_and_differs_for_another() -> None:
    classes = np.arange(300) % 3
    first, again, other = (cap_rows(classes, 30, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.max() > 100, "the first rows of each class are no random choice"


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 70), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_a_cap_takes_one_of_each_class_in_turn_in_one_random_order(labels: list[int], max_rows: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    taken: list[int] = []
    waiting = list(order)
    while waiting:
        first_of_class = {labels[row]: row for row in reversed(waiting)}
        taken += [row for row in waiting if first_of_class[labels[row]] == row]
        waiting = [row for row in waiting if first_of_class[labels[row]] != row]
    expected = sorted(taken[:max_rows])
    assert cap_rows(np.array(labels, dtype=np.int64), max_rows, seed).tolist() == expected


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 60 images of 6 categories, in 3 shards; image i of the table is i everywhere."""
    names = [str(number) for number in range(6)]
    with TableWriter(tmp_path, "images", names, ImageConfig(resolution=8, channels=1), shard_rows=25) as table:
        for number in range(60):
            table.add(np.full((1, 8, 8), number, dtype=np.uint8), number // 10)
    with IndexWriter(tmp_path, category_names=names, table_digest="d" * 64, shard_sizes=[25, 25, 10]) as writer:
        ids = np.arange(60)
        writer.add(ids, (ids // 10).astype(np.int32))
    return tmp_path / INDEX_FILE


def test_selected_rows_are_those_of_the_categories_with_their_class(index: Path) -> None:
    rows = select_rows(open_index(index), [[5], [0, 2]], num_categories=6, max_rows=None, seed=0)
    assert rows["id"].to_pylist() == [*range(10), *range(20, 30), *range(50, 60)]
    assert rows["class"].to_pylist() == [1] * 20 + [0] * 10
    capped = select_rows(open_index(index), [[5], [0, 2]], num_categories=6, max_rows=8, seed=0)
    assert np.bincount(capped["class"].to_numpy()).tolist() == [4, 4]
    assert set(capped["id"].to_pylist()) <= set(rows["id"].to_pylist())


def test_of_the_table_only_the_shards_with_a_selected_image_are_opened(index: Path) -> None:
    opened: list[int] = []

    def open_shard(number: int) -> Path:
        opened.append(number)
        return index.with_name(f"images-{number:05d}.parquet")

    rows = select_rows(open_index(index), [[5], [0]], num_categories=6, max_rows=None, seed=0)
    images, classes = read_selected(rows, open_shard, spill=index.parent)
    assert images[:, 0, 0, 0].tolist() == rows["id"].to_pylist() == [*range(10), *range(50, 60)]
    assert classes.tolist() == [1] * 10 + [0] * 10
    assert opened == [0, 2]
