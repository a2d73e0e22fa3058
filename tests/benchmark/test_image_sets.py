"""The sets that benchmarks make of others: no image in two of them, and classes as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.other_pairs import KINDS, PUBLIC_OF_A_KIND, sensitive_categories, write_pair
from benchmarks.unbalanced import kept


def test_unbalanced_copies_keep_ten_times_as_many_of_one_class_as_of_another_and_no_image_twice() -> None:
    labels = np.repeat(np.arange(5), [3000, 1000, 2000, 1500, 1800])
    rows = kept(labels, 2000)
    sizes = np.sort(np.bincount(labels[rows]))
    assert len(set(rows.tolist())) == len(rows) and 1990 <= len(rows) <= 2000
    assert sizes / sizes[0] == pytest.approx(10.0 ** (np.arange(5) / 4), rel=0.02)
    few = np.bincount(labels[kept(labels, 10**9)], minlength=5)
    assert (few <= np.bincount(labels)).all() and (few == np.bincount(labels)).any()


def test_no_image_of_a_further_pair_is_in_two_of_its_files_and_each_has_the_name_of_its_class(tmp_path: Path) -> None:
    names = ["cat", "car", "dog", "cup"]
    labels = np.tile(np.arange(4), 10)
    images = [{"bytes": f"{names[label]} {row}".encode(), "path": None} for row, label in enumerate(labels)]
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata({"label_names": json.dumps(names)})
    write_pair(tmp_path, "pair", table, {"vehicle": [1], "animal": [0, 2]})
    seen: list[str] = []
    for part, known, number in (
        ("public", {"cup": ["cup"]}, 10),
        ("train", {"vehicle": ["car"], "animal": ["cat", "dog"]}, 24),
        ("test", {"vehicle": ["car"], "animal": ["cat", "dog"]}, 6),
    ):
        written = pq.read_table(tmp_path / f"pair_{part}.parquet")
        assert json.loads(written.schema.metadata[b"label_names"]) == list(known)
        rows = [(row["image"]["bytes"].decode(), list(known)[row["label"]]) for row in written.to_pylist()]
        assert len(rows) == number
        assert all(image.split()[0] in known[label] for image, label in rows)
        seen += [image for image, _ in rows]
    assert len(set(seen)) == len(seen) == 40


def test_of_each_kind_of_things_the_same_few_categories_stay_public() -> None:
    categories = [name for of_it in KINDS.values() for name in of_it.split(", ")]
    assert len(set(categories)) == len(categories), "no category is of two kinds"
    chosen = sensitive_categories([*categories, "cliff"])
    assert {kind: len(found) for kind, found in chosen.items()} == {
        kind: len(of_it.split(", ")) - PUBLIC_OF_A_KIND for kind, of_it in KINDS.items()
    }
    assert chosen == sensitive_categories([*categories, "cliff"])
