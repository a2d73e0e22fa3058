"""Exports of a release: what other libraries find in them, and that nothing is lost, added or half-written."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torchvision.datasets import ImageFolder

from privimage.config.images import ImageConfig
from privimage.data.table import TableWriter, decode_png, encode_png, read_images
from privimage.errors import DataError, InputError
from privimage.release import formats
from privimage.release.formats import export_images, folder_names
from privimage.store.files import Store
from tests.pipeline_fixtures import Answer, Place

Command = Callable[..., Answer]
NAMES = ["anna", "berta", "carla"]


@pytest.fixture
def exported(finished: Place, privimage: Command, tmp_path: Path) -> Callable[[str], Path]:
    """The folder that `privimage export` makes of the finished run's release."""

    def call(layout: str) -> Path:
        to = tmp_path / layout
        answer = privimage("export", finished.release, "--format", layout, "--to", to)
        assert (answer.code, answer.out) == (0, f"40 images in {to}\n")
        return to

    return call


Exported = Callable[[str], Path]


def rows(finished: Place) -> list[dict[str, object]]:
    return pq.read_table(finished.release / "synthetic.parquet").to_pylist()


def test_torchvision_opens_the_image_folder_with_the_release_s_classes_and_pixels(
    finished: Place, exported: Exported
) -> None:
    folder = ImageFolder(str(exported("folder")))
    assert folder.classes == NAMES
    images, labels = read_images([finished.release / "synthetic.parquet"])
    order = np.argsort(labels, kind="stable")
    assert [label for _, label in folder] == labels[order].tolist()
    for (picture, _), pixels in zip(folder, images[order], strict=True):
        assert np.array_equal(np.asarray(picture)[..., 0], pixels[0])


def samples_of(shards: list[Path]) -> dict[str, dict[str, bytes]]:
    """WebDataset's convention: members whose names agree up to the first dot are one sample, and lie side by side."""
    samples: dict[str, dict[str, bytes]] = {}
    last = None
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                assert member.isfile()
                key, _, extension = member.name.partition(".")
                assert key == last or key not in samples
                last = key
                data = tar.extractfile(member)
                assert data is not None
                samples.setdefault(key, {})[extension] = data.read()
    return samples


def test_the_shards_follow_webdataset_s_naming(finished: Place, exported: Exported) -> None:
    samples = samples_of(sorted(exported("webdataset").glob("*.tar")))
    assert list(samples) == [f"{number:06d}" for number in range(40)]
    for sample, row in zip(samples.values(), rows(finished), strict=True):
        assert sample == {"png": row["image"]["bytes"], "cls": str(row["label"]).encode()}  # type: ignore[index]
        assert decode_png(sample["png"]).shape == (1, 8, 8)


def test_images_are_spread_over_shards_and_the_same_release_gives_the_same_bytes(
    finished: Place, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "SHARD_IMAGES", 20)
    first = exported("webdataset")
    shards = sorted(first.glob("*.tar"))
    assert [shard.name for shard in shards] == ["synthetic-000000.tar", "synthetic-000001.tar"]
    assert [len(samples_of([shard])) for shard in shards] == [20, 20]
    files = {file.name: file.read_bytes() for file in finished.release.iterdir()}
    export_images(files, "webdataset", tmp_path / "again")
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()
    }


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_the_promise_and_the_class_names_come_along(finished: Place, exported: Exported, layout: str) -> None:
    to = exported(layout)
    assert (to / "certificate.json").read_bytes() == (finished.release / "certificate.json").read_bytes()
    assert json.loads((to / "class_names.json").read_text()) == NAMES


def test_as_parquet_it_is_the_release_itself_and_verifies(
    finished: Place, exported: Exported, privimage: Command
) -> None:
    assert privimage("verify", exported("parquet"), "--store", finished.folder).code == 0


def test_a_release_on_another_store_is_exported_to_disk(
    finished: Place, s3_bucket: str, privimage: Command, tmp_path: Path
) -> None:
    store = Store.open(f"s3://{s3_bucket}/handed-on")
    for file in finished.release.iterdir():
        store.upload(file, file.name)
    assert privimage("export", store.url, "--format", "folder", "--to", tmp_path / "to").code == 0
    assert len(ImageFolder(str(tmp_path / "to"))) == 40


def test_a_changed_release_is_not_exported(finished_copy: Place, privimage: Command, tmp_path: Path) -> None:
    file = finished_copy.release / "synthetic.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    answer = privimage("export", finished_copy.release, "--format", "folder", "--to", tmp_path / "to")
    assert answer.code == 2
    assert "changed or unlisted: synthetic.parquet" in answer.complaint
    assert not (tmp_path / "to").exists()


def test_a_folder_that_holds_something_is_left_alone(finished: Place, privimage: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "mine.txt"):
        answer = privimage("export", finished.release, "--format", "folder", "--to", place)
        assert answer.code == 2
        assert "is not empty" in answer.complaint
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(finished: Place, privimage: Command, tmp_path: Path) -> None:
    assert privimage("export", finished.release, "--format", "folder", "--to", tmp_path).code == 0
    assert len(ImageFolder(str(tmp_path))) == 40


def table(folder: Path, names: list[str], labels: list[int]) -> dict[str, bytes]:
    """The files that an export reads, of images that are all black."""
    with TableWriter(folder, "images", names, ImageConfig(resolution=8, channels=1)) as writer:
        for label in labels:
            writer.add_png(encode_png(np.zeros((1, 8, 8), dtype=np.uint8)), label)
    return {"synthetic.parquet": (folder / writer.files[0]).read_bytes(), "certificate.json": b"{}"}


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_an_export_that_fails_leaves_nothing(tmp_path: Path, layout: str) -> None:
    files = table(tmp_path / "table", ["a", "b"], [0, 1, 2])
    with pytest.raises(DataError, match="label 2, but there are 2 classes"):
        export_images(files, layout, tmp_path / "to")
    with pytest.raises(DataError, match="no image table"):
        export_images({**files, "synthetic.parquet": b"PAR1"}, layout, tmp_path / "to")
    with pytest.raises(InputError, match="can be written"):
        export_images(files, layout, tmp_path / "table" / "images-00000.parquet" / "to")
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["anna", "berta"], ["anna", "berta"]),
        ([str(digit) for digit in range(10)], [str(digit) for digit in range(10)]),
        (["trouser", "coat"], ["0-trouser", "1-coat"]),
        (["A", "a"], ["0-A", "1-a"]),
        (["T-shirt/top"], ["0-T-shirt_top"]),
        (["..", "../../etc"], ["0-_", "1-_etc"]),
        (["AUX", "CON", "NUL"], ["0-AUX", "1-CON", "2-NUL"]),
        (["com1", "lpt1"], ["0-com1", "1-lpt1"]),
        (["aux.old", "con .b"], ["0-aux_old", "1-con_b"]),
        (["auxiliary", "console"], ["auxiliary", "console"]),
        (["a" * 64, "b"], ["a" * 64, "b"]),
        (["a" * 65, "b"], [f"0-{'a' * 64}", "1-b"]),
        ([str(number) for number in range(11)], [f"{number:02d}-{number}" for number in range(11)]),
    ],
)
def test_folders_sort_as_the_labels_do_and_never_lead_elsewhere(names: list[str], folders: list[str]) -> None:
    assert folder_names(names) == folders
    assert sorted(folders) == folders


def test_torchvision_finds_the_labels_of_classes_that_do_not_sort(tmp_path: Path) -> None:
    export_images(table(tmp_path / "table", ["trouser", "coat", "a/b"], [2, 0, 1, 2]), "folder", tmp_path / "to")
    assert sorted(label for _, label in ImageFolder(str(tmp_path / "to"))) == [0, 1, 2, 2]


# ------------------------------------------------------------------ libraries that need not be installed


def test_datasets_loads_the_release_folder_by_its_card(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    found = datasets.load_dataset(str(finished.release), cache_dir=str(tmp_path))
    assert list(found) == ["train"]
    assert found["train"].features["label"].names == NAMES
    assert found["train"][0]["image"].size == (8, 8)
    assert found["train"]["label"][:] == [row["label"] for row in rows(finished)]


def test_duckdb_reads_the_release(finished: Place) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    file = finished.release / "synthetic.parquet"
    assert duckdb.sql(f"SELECT count(*), count(DISTINCT label) FROM '{file}'").fetchall() == [(40, 3)]
    (png,) = duckdb.sql(f"SELECT image.bytes FROM '{file}' WHERE id = 3").fetchall()[0]
    assert decode_png(png).shape == (1, 8, 8)


def test_polars_reads_the_release(finished: Place) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.read_parquet(finished.release / "synthetic.parquet")
    assert frame["label"].to_list() == [row["label"] for row in rows(finished)]
    assert decode_png(frame["image"][3]["bytes"]).shape == (1, 8, 8)
