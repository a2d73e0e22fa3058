"""Sources in an S3 bucket, against a local S3 server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs

from privimage.config.images import ImageConfig
from privimage.config.sources import FolderSource, ParquetSource
from privimage.data.admission import admit_public
from privimage.data.sources import open_source
from privimage.errors import DataError
from tests.store.faulty_s3 import FaultyS3

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(s3_bucket: str) -> str:
    """The URL of a new bucket."""
    return f"s3://{s3_bucket}"


@pytest.fixture
def fs(bucket: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


def test_folder_zip_and_parquet_in_a_bucket_are_what_they_are_on_disk(
    bucket: str, fs: s3fs.S3FileSystem, tmp_path: Path, make_folder: Callable[..., Path], gray8: ImageConfig
) -> None:
    local = make_folder(tmp_path / "pets", per_class=5)
    fs.put(str(local), f"{bucket}/pets", recursive=True)
    fs.put(shutil.make_archive(str(tmp_path / "zipped"), "zip", local), f"{bucket}/pets.zip")
    here = admit_public(FolderSource(path=str(local)), gray8, tmp_path / "local")
    fs.put(str(tmp_path / "local" / "images-00000.parquet"), f"{bucket}/tables/a.parquet")
    assert here.num_images == 10
    for source in (
        FolderSource(path=f"{bucket}/pets"),
        FolderSource(path=f"{bucket}/pets.zip"),
        ParquetSource(path=f"{bucket}/tables"),
        ParquetSource(path=f"{bucket}/tables/a.parquet"),
    ):
        assert admit_public(source, gray8, tmp_path / "there") == here
        written = (tmp_path / "there" / "images-00000.parquet").read_bytes()
        assert written == (tmp_path / "local" / "images-00000.parquet").read_bytes()


def test_images_that_came_after_a_listing_are_seen(
    bucket: str, fs: s3fs.S3FileSystem, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    local = make_folder(tmp_path / "pets", per_class=1)
    fs.put(str(local), f"{bucket}/pets", recursive=True)
    assert len(open_source(FolderSource(path=f"{bucket}/pets"))) == 2
    fs.put(str(local / "dog" / "000.png"), f"{bucket}/pets/dog/new.png")
    assert len(open_source(FolderSource(path=f"{bucket}/pets/"))) == 3


def test_an_empty_folder_marker_stays_a_class(
    bucket: str, fs: s3fs.S3FileSystem, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    fs.put(str(make_folder(tmp_path / "pets", per_class=1)), f"{bucket}/pets", recursive=True)
    fs.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key="pets/emu/", Body=b"")
    source = open_source(FolderSource(path=f"{bucket}/pets"))
    assert source.class_names == ("cat", "dog", "emu") and len(source) == 2


@pytest.mark.parametrize(
    ("keys", "classes", "refused"),
    [
        (["ant/a b.png", "ant/a+b.png", "ant/a%20b.png", "ant/100%.png", "bee/1.png"], ("ant", "bee"), []),
        (["ant/a#b.png", "ant/a?b.png", "ant/\u00e9.png", "ant/e\u0301.png", "bee/1.png"], ("ant", "bee"), []),
        (["ant/[1].png", "ant/*.png", "ant/{a,b}.png", "bee/1.png"], ("ant", "bee"), []),
        (["ant//1.png", "/ant/2.png", "bee/1.png"], ("ant", "bee"), []),
        (["./ant/1.png", "ant/./2.png", "bee/1.png"], ("ant", "bee"), []),
        (["./ant/1.png", "ant/1.png", "bee/1.png"], ("ant", "bee"), ["ant/1.png", "ant/1.png"]),
        (["../ant/1.png", "ant/2.png", "bee/1.png"], ("ant", "bee"), ["../ant/1.png"]),
        (["ant\\1.png", "ant/2\\3.png", "bee/1.png"], ("ant", "bee"), ["ant\\1.png"]),
        (["ant", "ant/1.png", "bee/1.png"], ("ant", "bee"), ["ant"]),
        (["ant/", "ant/1.png", "bee/1.png"], ("ant", "bee"), ["ant"]),
        (["1.png", "ant/1.png", "bee/1.png"], ("ant", "bee"), ["1.png"]),
    ],
    ids=[
        *(
            "blanks and percent",
            "hash and Unicode",
            "glob letters",
            "slashes",
            "dots",
            "one path twice",
            "out of the folder",
        ),
        *("backslashes", "a file and a folder", "a marker with content", "beside the classes"),
    ],
)
def test_every_object_of_a_bucket_is_an_image_or_is_refused_by_name(
    bucket: str,
    fs: s3fs.S3FileSystem,
    as_png: Callable[..., bytes],
    make_picture: Callable[..., Any],
    keys: list[str],
    classes: tuple[str, ...],
    refused: list[str],
) -> None:
    for number, key in enumerate(keys):
        body = as_png(make_picture(number))
        fs.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key=f"in/{key}", Body=body)
    source = open_source(FolderSource(path=f"{bucket}/in"))
    assert source.class_names == classes
    items = list(source)
    assert len(source) == len(items) == len(keys)
    found, pictures = [], set()
    for item in items:
        try:
            pictures.add(item.load().tobytes())
        except DataError:
            found.append(item.path)
    assert found == refused
    assert len(pictures) == len(keys) - len(refused)


def test_missing_buckets_and_folders_are_data_errors(bucket: str) -> None:
    for path in (f"{bucket}/none", "s3://no-such-bucket/pets"):
        for source in (FolderSource(path=path), FolderSource(path=path + ".zip"), ParquetSource(path=path)):
            with pytest.raises(DataError, match="Nothing found at"):
                open_source(source)


def test_sources_are_read_whole_through_a_bad_network(
    s3_endpoint: str,
    bucket: str,
    fs: s3fs.S3FileSystem,
    tmp_path: Path,
    make_folder: Callable[..., Path],
    gray8: ImageConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = make_folder(tmp_path / "pets", per_class=5)
    here = admit_public(FolderSource(path=str(local)), gray8, tmp_path / "local")
    fs.put(str(local), f"{bucket}/pets", recursive=True)
    fs.put(str(tmp_path / "local" / "images-00000.parquet"), f"{bucket}/tables/a.parquet")
    with FaultyS3(s3_endpoint) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        for source in (FolderSource(path=f"{bucket}/pets"), ParquetSource(path=f"{bucket}/tables")):
            faulty.order("reset", "GET", skip=3)  # past the look whether the address is right
            faulty.order("cut", "GET", skip=4)
            assert admit_public(source, gray8, tmp_path / "there") == here


def test_a_wrong_address_is_told_soon(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(DataError, match=f"{bucket}/pets cannot be read: Could not connect to .*127.0.0.1:1"):
        open_source(FolderSource(path=f"{bucket}/pets"))
    assert time.monotonic() - begun < 10


def test_a_bucket_that_may_not_be_read_is_told_apart(
    s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyS3(s3_endpoint) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        faulty.order("deny")
        with pytest.raises(DataError, match=f"{bucket}/pets cannot be read: AccessDenied"):
            open_source(FolderSource(path=f"{bucket}/pets"))
