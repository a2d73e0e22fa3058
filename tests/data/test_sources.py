"""Every kind of source is read in a fixed order, and what is missing is said in one sentence."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from privimage.config.sources import DemoDigits, FolderSource, ParquetSource, TorchvisionSource
from privimage.data.fingerprint import source_fingerprint
from privimage.data.sources import Source, open_source
from privimage.errors import ConfigError, DataError


def listed(source: Source) -> list[tuple[int, str]]:
    return [(item.label, item.path) for item in source]


def test_a_folder_is_read_in_sorted_order_at_any_depth(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_folder(tmp_path, ("dog", "cat"), per_class=2)
    (tmp_path / "cat" / "deep").mkdir()
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / "deep" / "x.png")
    for clutter in ("cat/.DS_Store", "cat/Thumbs.db", "README.txt"):
        (tmp_path / clutter).write_text("no image")
    (tmp_path / ".git").mkdir()
    source = open_source(FolderSource(path=str(tmp_path)))
    assert source.class_names == ("cat", "dog") and len(source) == 4
    assert listed(source) == [(0, "cat/001.png"), (0, "cat/deep/x.png"), (1, "dog/000.png"), (1, "dog/001.png")]
    assert listed(source) == listed(source)


def test_symbolic_links_to_class_folders_are_followed(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_folder(tmp_path / "real", ("cat", "dog"), per_class=1)
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    assert len(open_source(FolderSource(path=str(tmp_path / "linked")))) == 2


def test_a_class_folder_without_images_stays_a_class(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_folder(tmp_path, per_class=1)
    (tmp_path / "emu").mkdir()
    assert open_source(FolderSource(path=str(tmp_path))).class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize("top", ["", "pets/"])
def test_a_zip_is_read_in_place_with_or_without_a_top_folder(
    tmp_path: Path, make_folder: Callable[..., Path], top: str
) -> None:
    make_folder(tmp_path / "images", per_class=3)
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png"), reverse=True):
            archive.write(path, top + str(path.relative_to(tmp_path / "images")))
        archive.writestr(f"__MACOSX/{top}cat/._000.png", b"resource fork")
        archive.writestr(f"{top}.DS_Store", b"clutter")
        archive.mkdir(f"{top}emu")
    source = open_source(FolderSource(path=str(file)))
    folder = open_source(FolderSource(path=str(tmp_path / "images")))
    assert source.class_names == ("cat", "dog", "emu")
    assert listed(source) == listed(folder)
    assert [item.load().tobytes() for item in source] == [item.load().tobytes() for item in folder]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images.zip"]


def test_zip_bombs_and_broken_zips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privimage.data.zip_listing._MAX_FREE", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/1.bmp", "b/2.bmp"):
            archive.writestr(name, bytes(5_000_000))
    with pytest.raises(DataError, match="zip bomb"):
        open_source(FolderSource(path=str(tmp_path / "bomb.zip")))
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="no readable zip"):
        open_source(FolderSource(path=str(tmp_path / "broken.zip")))


def test_a_damaged_zip_member_is_refused_when_it_is_loaded(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_folder(tmp_path / "images", per_class=1)
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "images"))
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 255
    file.write_bytes(data)
    first, second = open_source(FolderSource(path=str(file)))
    with pytest.raises(DataError, match="cannot be read"):
        first.load()
    assert second.load().size == (8, 8)


def test_folders_that_cannot_be_used_say_why(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    def refused(path: Path, reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            open_source(FolderSource(path=str(path)))

    refused(tmp_path / "missing", "No folder at")
    refused(tmp_path / "missing.zip", "Nothing found at")
    refused(tmp_path, "no class folders")
    (tmp_path / "cat").mkdir()
    refused(tmp_path, "at least two")
    (tmp_path / "dog").mkdir()
    refused(tmp_path, "no images")


def write_parquet(file: Path, labels: list[object], images: list[bytes | None], **options: object) -> None:
    plain = options.get("plain", False)
    column = images if plain else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(column, kind), "label": options.get("labels_as", pa.array)(labels)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(options.get("metadata", {})), file, row_group_size=2)


@pytest.fixture
def pictures(as_png: Callable[..., bytes], make_picture: Callable[..., np.ndarray]) -> list[bytes]:
    return [as_png(make_picture(number)) for number in range(5)]


def test_class_names_come_from_the_hugging_face_metadata(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {"label": {"names": ["no", "yes", "maybe"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "label_names": '["other", "names"]'}
    write_parquet(tmp_path / "a.parquet", [1, 0, 1, 0, 0], pictures, metadata=metadata)
    source = open_source(ParquetSource(path=str(tmp_path / "a.parquet")))
    assert source.class_names == ("no", "yes", "maybe")
    assert listed(source) == [(1, "0.png"), (0, "1.png"), (1, "2.png"), (0, "3.png"), (0, "4.png")]


def test_class_names_come_from_label_names_or_from_the_numbers(tmp_path: Path, pictures: list[bytes]) -> None:
    write_parquet(tmp_path / "a.parquet", [1, 0, 1, 0, 0], pictures, metadata={"label_names": '["no", "yes"]'})
    assert open_source(ParquetSource(path=str(tmp_path / "a.parquet"))).class_names == ("no", "yes")
    write_parquet(tmp_path / "b.parquet", [10, 2, 10, 2, 2], pictures)
    numbered = open_source(ParquetSource(path=str(tmp_path / "b.parquet")))
    assert numbered.class_names == ("2", "10") and [item.label for item in numbered] == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("labels_as", [pa.array, lambda labels: pa.array(labels).dictionary_encode()])
def test_string_labels_are_sorted_class_names(
    tmp_path: Path, pictures: list[bytes], labels_as: Callable[..., pa.Array]
) -> None:
    write_parquet(tmp_path / "a.parquet", ["dog", "cat", "dog", "cat", None], pictures, labels_as=labels_as)
    source = open_source(ParquetSource(path=str(tmp_path / "a.parquet")))
    assert source.class_names == ("cat", "dog") and [item.label for item in source] == [1, 0, 1, 0, -1]


def test_a_folder_of_parquet_files_with_plain_binary_is_one_source(tmp_path: Path, pictures: list[bytes]) -> None:
    write_parquet(tmp_path / "b.parquet", [0, 1], pictures[3:], plain=True)
    write_parquet(tmp_path / "a.parquet", [0, 1, 1], pictures[:3], plain=True)
    (tmp_path / "_SUCCESS").touch()
    source = open_source(ParquetSource(path=str(tmp_path)))
    assert len(source) == 5
    assert [item.path for item in source][2:4] == ["a.parquet, row 2", "b.parquet, row 0"]
    assert all(item.load().size == (8, 8) for item in source)


def test_rows_without_bytes_are_refused_when_loaded(tmp_path: Path, pictures: list[bytes]) -> None:
    write_parquet(tmp_path / "a.parquet", [0, 1], [pictures[0], None])
    with pytest.raises(DataError, match="no image bytes"):
        list(open_source(ParquetSource(path=str(tmp_path / "a.parquet"))))[1].load()


def test_so_many_rows_as_were_asked_for_are_taken_the_same_each_time_and_whatever_they_hold(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    file, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_parquet(file, [number % 2 for number in range(40)], (pictures * 8)[:40])
    write_parquet(other, [1 - number % 2 for number in range(40)], pictures[1:2] * 40)

    def taken(path: Path, max_images: int | None) -> list[str]:
        source = open_source(ParquetSource(path=str(path), max_images=max_images))
        paths = [item.path for item in source]
        assert len(paths) == len(source)
        return paths

    some = taken(file, 10)
    assert len(some) == 10
    assert some == sorted(some, key=lambda path: int(path.removesuffix(".png")))
    assert some == taken(file, 10) == taken(other, 10)
    assert some != [f"{number}.png" for number in range(10)]
    assert taken(file, None) == taken(file, 40) == taken(file, 100) == [f"{number}.png" for number in range(40)]
    few, all_of_them = (ParquetSource(path=str(file), max_images=number) for number in (10, None))
    assert source_fingerprint(few) != source_fingerprint(all_of_them)
    assert "max_images" not in source_fingerprint(all_of_them)


def test_parquet_that_cannot_be_used_says_why(tmp_path: Path, pictures: list[bytes]) -> None:
    def refused(path: Path, reason: str, **columns: str) -> None:
        with pytest.raises(DataError, match=reason):
            open_source(ParquetSource(path=str(path), **columns))

    file = tmp_path / "a.parquet"
    refused(file, "Nothing found")
    refused(tmp_path, "no .parquet files")
    write_parquet(file, [0, 1, 0, 1, 0], pictures)
    refused(file, "no column 'class'; it has image, label", label_column="class")
    refused(file, "holds int64, expected struct", image_column="label")
    refused(file, "expected integers or strings", label_column="image")
    write_parquet(file, [0, 0], pictures[:2])
    refused(file, "at least two")
    write_parquet(file, [], [], metadata={"label_names": '["a", "b"]'}, labels_as=lambda x: pa.array(x, pa.int64()))
    refused(file, "no images")
    write_parquet(file, [0, 1], pictures[:2], metadata={"label_names": "not json"})
    refused(file, "not the JSON")
    write_parquet(file, [0, 1], pictures[:2])
    write_parquet(tmp_path / "b.parquet", [0, 1], pictures[:2], metadata={"label_names": '["a", "b"]'})
    refused(tmp_path, "different classes")
    (tmp_path / "b.parquet").write_text("text")
    refused(tmp_path, "no readable Parquet")


def write_idx(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(header + values.astype(np.uint8).tobytes())


def test_mnist_is_read_by_name(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    write_idx(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", np.array([7, 0, 9]))
    write_idx(tmp_path / "MNIST/raw/train-images-idx3-ubyte", images[:0])
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.array([]))
    source = open_source(TorchvisionSource(name="MNIST", root=str(tmp_path), split="test"))
    assert len(source) == 3 and len(source.class_names) == 10
    assert listed(source) == [(7, "MNIST/test/0"), (0, "MNIST/test/1"), (9, "MNIST/test/2")]
    np.testing.assert_array_equal(np.asarray(next(iter(source)).load()), images[0])


def test_emnist_letters_are_upright_and_counted_from_zero(tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (2, 28, 28))
    for part in ("train", "test"):
        write_idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-images-idx3-ubyte", upright.transpose(0, 2, 1))
        write_idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-labels-idx1-ubyte", np.array([1, 26]))
    source = open_source(TorchvisionSource(name="EMNIST", root=str(tmp_path), subset="letters"))
    assert source.class_names == tuple("abcdefghijklmnopqrstuvwxyz")
    assert [item.label for item in source] == [0, 25]
    np.testing.assert_array_equal(np.asarray(next(iter(source)).load()), upright[0])


def test_imagenet_and_eurosat_are_read_from_their_files(tmp_path: Path) -> None:
    wnids = {"n01": ("crane", "bird"), "n02": ("crane",)}
    torch.save((wnids, ["n01"]), tmp_path / "meta.bin")
    for folder in ("train/n01", "train/n02", "eurosat/2750/Forest", "eurosat/2750/River"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / folder / "x.png")
    imagenet = open_source(TorchvisionSource(name="ImageNet", root=str(tmp_path)))
    assert imagenet.class_names == ("crane (n01)", "crane (n02)")
    assert listed(imagenet) == [(0, "ImageNet/train/0"), (1, "ImageNet/train/1")]
    eurosat = open_source(TorchvisionSource(name="EuroSAT", root=str(tmp_path)))
    assert eurosat.class_names == ("Forest", "River") and next(iter(eurosat)).load().size == (9, 9)


def test_celeba_is_labelled_by_an_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its files are checked by md5, which no small set can have.
    monkeypatch.setattr("torchvision.datasets.CelebA._check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = ["000001.jpg", "000002.jpg", "000003.jpg"]
    for name in names:
        Image.new("RGB", (9, 9)).save(folder / "img_align_celeba" / name)
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, "001", strict=True)))
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} 1\n" for name in names))
    attributes = zip(names, ("-1 1", "1 -1", "1 1"), strict=True)
    (folder / "list_attr_celeba.txt").write_text("3\nMale Young\n" + "".join(f"{n} {a}\n" for n, a in attributes))
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (folder / name).write_text("3\na b\n" + "".join(f"{n} 1 2\n" for n in names))
    source = open_source(TorchvisionSource(name="CelebA", root=str(tmp_path), subset="Male"))
    assert source.class_names == ("not Male", "Male") and [item.label for item in source] == [0, 1]
    assert next(iter(source)).load().size == (9, 9)
    with pytest.raises(ConfigError, match="Male, Young"):
        open_source(TorchvisionSource(name="CelebA", root=str(tmp_path), subset="Bald"))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "EuroSAT", "PCAM", "ImageNet"])
def test_missing_torchvision_files_are_named_with_the_cure(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="place its files there") as caught:
        open_source(TorchvisionSource(name=name, root=str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    assert ("download: true" in str(caught.value)) == (name != "ImageNet")


def test_wrong_splits_and_subsets_are_refused(tmp_path: Path) -> None:
    for source, reason in (
        (TorchvisionSource(name="MNIST", root=str(tmp_path), split="val"), "train, test"),
        (TorchvisionSource(name="MNIST", root=str(tmp_path), subset="letters"), "no subsets"),
        (TorchvisionSource(name="EMNIST", root=str(tmp_path)), "letters"),
    ):
        with pytest.raises(ConfigError, match=reason):
            open_source(source)


def test_the_demo_digits_are_a_source_like_any_other() -> None:
    source = open_source(DemoDigits())
    assert len(source) == 1797 and source.class_names == tuple("0123456789")
