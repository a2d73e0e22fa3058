"""Parquet as people have it: labels that are none, names in other shapes, splits in one folder, types of newer writers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privimage.config.images import ImageConfig, SensitiveConfig
from privimage.config.sources import ParquetSource
from privimage.data.admission import SensitiveDataProblem
from privimage.data.fingerprint import source_fingerprint
from privimage.data.sources import Source, open_source
from privimage.errors import DataError
from tests.data.test_admission import admit_sensitive

Write = Callable[..., Path]


def opened(path: Path, **settings: Any) -> Source:
    return open_source(ParquetSource(path=str(path), **settings))


@pytest.fixture
def write(tmp_path: Path, as_png: Callable[..., bytes], make_picture: Callable[[int], np.ndarray]) -> Write:
    """Writes a table of as many distinct images as there are labels."""

    def table(name: str, labels: Any, metadata: dict[str, str] | None = None, kind: pa.DataType | None = None) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"bytes": as_png(make_picture(number)), "path": f"{number}.png"} for number in range(len(labels))]
        struct = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(rows, struct), "label": labels}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata or {}), file)
        return file

    return table


def labels_of(source: Source) -> list[int]:
    return [item.label for item in source]


# ------------------------------------------------------------------ labels


def test_a_label_below_zero_is_a_missing_one(write: Write, tmp_path: Path, gray8: ImageConfig) -> None:
    file = write("in.parquet", [0, 1, -1, -2] * 20)
    source = opened(file)
    assert source.class_names == ("0", "1") and labels_of(source)[:4] == [0, 1, -1, -1]
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(
            SensitiveConfig(train=ParquetSource(path=str(file)), test_fraction=0.5), gray8, tmp_path / "out"
        )
    assert len(caught.value.details) == 40
    assert caught.value.details[0] == "train: 2.png: label -1 is missing or outside 0..1"


def test_labels_of_minus_one_and_one_are_not_two_classes(write: Write) -> None:
    with pytest.raises(DataError, match="1 class"):
        opened(write("in.parquet", [1, -1] * 4))


@pytest.mark.parametrize("blank", ["", "  ", "\t", None])
def test_a_blank_label_is_a_missing_one(write: Write, blank: str | None) -> None:
    source = opened(write("in.parquet", ["cat", blank, "dog"]))
    assert source.class_names == ("cat", "dog") and labels_of(source) == [0, -1, 1]


def test_labels_that_differ_in_blanks_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match="begins or ends with a blank"):
        opened(write("in.parquet", ["cat", "cat ", " cat"]))


@pytest.mark.parametrize(
    "names", ['"ab"', '{"no": 0, "yes": 1}', '{"0": "no", "2": "yes"}', "[null, 1]", "[[0], [1]]", "7"]
)
def test_class_names_that_are_no_list_are_refused(write: Write, names: str) -> None:
    for metadata in (
        {"label_names": names},
        {"huggingface": f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'},
    ):
        with pytest.raises(DataError, match="no list of names"):
            opened(write("in.parquet", [0, 1], metadata))


def test_class_names_numbered_as_in_a_dataset_card_are_understood(write: Write) -> None:
    names = {str(number): f"class {number}" for number in range(12)}
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    assert opened(write("in.parquet", [0, 1], metadata)).class_names == tuple(names.values())


# ------------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("image", "label"),
    [
        (pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]), pa.string_view()),
        (pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]), pa.large_string()),
    ],
)
def test_views_and_large_types_are_read(write: Write, image: pa.DataType, label: pa.DataType) -> None:
    source = opened(write("in.parquet", pa.array(["b", "a", "b", None], label), kind=image))
    assert source.class_names == ("a", "b") and labels_of(source) == [1, 0, 1, -1]
    assert [item.load().size for item in source] == [(8, 8)] * 4
    assert [item.path for item in source] == [f"{number}.png" for number in range(4)]


def test_a_view_without_a_struct_is_read(tmp_path: Path, as_png: Callable[..., bytes]) -> None:
    rows = [as_png(np.full((8, 8), number, np.uint8)) for number in range(2)]
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary_view()), "label": [0, 1]}), tmp_path / "in.parquet")
    assert [item.load().size for item in opened(tmp_path / "in.parquet")] == [(8, 8)] * 2


# ------------------------------------------------------------------ folders


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train.parquet", "validation.parquet"),
        ("train-00000-of-00001-0123456789abcdef.parquet", "dev-00000-of-00001.parquet"),
        ("pets_train_0.parquet", "pets_test_0.parquet"),
        ("train-0.parquet", "extra.parquet"),
        ("train-00000-of-00001.parquet", "secret-00000-of-00001.parquet"),
    ],
)
def test_splits_in_one_folder_are_refused_with_the_setting_that_names_one(
    write: Write, tmp_path: Path, train: str, test: str
) -> None:
    write(f"data/{train}", [0, 1, 0])
    write(f"data/{test}", [0, 1])
    with pytest.raises(DataError, match="say in `split` which is meant, such as train, or all") as caught:
        opened(tmp_path / "data")
    assert "secret" not in str(caught.value)
    assert len(opened(tmp_path / "data", split="train")) == len(opened(tmp_path / "data", split="training")) == 3
    assert len(opened(tmp_path / "data", split="all")) == 5
    with pytest.raises(DataError, match="no .parquet files of the split 'other'"):
        opened(tmp_path / "data", split="other")
    prints = [
        source_fingerprint(ParquetSource(path=str(tmp_path / "data"), split=name)) for name in (None, "train", "all")
    ]
    assert len({json.dumps(item) for item in prints}) == 3


def test_files_of_one_split_are_one_source_whatever_they_are_called(write: Write, tmp_path: Path) -> None:
    for number in range(2):
        write(f"a/train-{number:05d}-of-00002.parquet", [0, 1])
        write(f"b/part-{number}.parquet", [0, 1])
        write(f"c/{number}.PARQUET", [0, 1])
        write(f"d/images-{number:05d}.parquet", [0, 1])
    assert [len(opened(tmp_path / name)) for name in "abcd"] == [4, 4, 4, 4]


def test_a_cloned_repository_is_read_in_its_folder_data(write: Write, tmp_path: Path) -> None:
    write("repo/data/train-00000-of-00001.parquet", [0, 1, 0])
    (tmp_path / "repo" / "README.md").write_text("card")
    assert len(opened(tmp_path / "repo")) == 3
    write("repo/data/test-00000-of-00001.parquet", [0, 1])
    with pytest.raises(DataError, match="several splits"):
        opened(tmp_path / "repo")
    assert len(opened(tmp_path / "repo", split="test")) == 2


@pytest.mark.parametrize(
    "names", [("a.parquet", "more/b.parquet"), ("one/a.parquet",), ("label=0/a.parquet", "label=1/a.parquet")]
)
def test_files_in_folders_below_are_not_overlooked(write: Write, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(f"in/{name}", [0, 1])
    with pytest.raises(DataError, match="in folders below") as caught:
        opened(tmp_path / "in")
    assert ("column=value" in str(caught.value)) == ("=" in names[0])
    assert "more" not in str(caught.value) and "one/" not in str(caught.value)


def test_a_pipe_among_the_files_is_refused(write: Write, tmp_path: Path) -> None:
    write("in/a.parquet", [0, 1])
    os.mkfifo(tmp_path / "in" / "b.parquet")
    with pytest.raises(DataError, match="named pipe"):
        opened(tmp_path / "in")
    os.mkfifo(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="Nothing found"):
        opened(tmp_path / "c.parquet")


def test_no_message_names_a_file_of_a_folder(write: Write, tmp_path: Path) -> None:
    write("in/secret-1.parquet", [0, 1])
    write("in/secret-2.parquet", [0.5, 1.5])
    for settings in ({}, {"label_column": "class"}):
        with pytest.raises(DataError) as caught:
            opened(tmp_path / "in", **settings)
        assert "secret" not in str(caught.value)
    (tmp_path / "in" / "secret-2.parquet").write_text("text")
    with pytest.raises(DataError, match="no readable Parquet") as caught:
        opened(tmp_path / "in")
    assert "secret" not in str(caught.value)


def test_the_stated_bits_reach_the_images(tmp_path: Path) -> None:
    twelve = np.full((8, 8), 4095, np.uint16)
    from tests.data.test_odd_images import stored

    pq.write_table(
        pa.table({"image": pa.array([stored(twelve)] * 2, pa.binary()), "label": [0, 1]}), tmp_path / "a.parquet"
    )
    assert [int(np.asarray(item.load()).max()) for item in opened(tmp_path / "a.parquet", bits=12)] == [65535, 65535]
    one, other = (ParquetSource(path=str(tmp_path / "a.parquet"), bits=bits) for bits in (None, 12))
    assert source_fingerprint(one) != source_fingerprint(other)
