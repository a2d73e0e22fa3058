"""The store's promises: one winner per name, nothing half-written, nothing stale, and clear refusals."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privimage.errors import StoreError
from privimage.store.backends import LocalBackend
from privimage.store.files import Store, check_name


def test_of_two_creates_the_first_wins_and_its_bytes_stay(store: Store) -> None:
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"


def test_a_create_whose_reply_was_lost_still_counts_as_won(store: Store) -> None:
    assert store.create("entry", b"mine, with a random id")
    assert store.create("entry", b"mine, with a random id")


def test_sixteen_racing_threads_have_one_winner(store: Store) -> None:
    for round_number in range(3):
        start = threading.Barrier(16)

        def race(writer: int, name: str = f"race/{round_number}", start: threading.Barrier = start) -> bool:
            data = str(writer).encode() * 1000
            start.wait()
            return store.create(name, data)

        with ThreadPoolExecutor(16) as threads:
            won = list(threads.map(race, range(16)))
        assert sum(won) == 1
        assert store.read(f"race/{round_number}") == str(won.index(True)).encode() * 1000


def test_processes_that_race_on_a_folder_have_one_winner(tmp_path: Path) -> None:
    program = """
import sys
from privimage.store.files import Store
store = Store.open(sys.argv[1])
print(*(number for number in range(50) if store.create(f"race/{number}", sys.argv[2].encode())))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(writer)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for writer in range(3)
    ]
    won = [int(number) for racer in racers for number in racer.communicate(timeout=60)[0].split()]
    assert sorted(won) == list(range(50))


def test_upload_replaces_and_download_returns_the_same_bytes(store: Store, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "deep" / "copy"
    for data in (b"x" * 300_000, b""):
        source.write_bytes(data)
        store.upload(source, "big/file.bin")
        store.download("big/file.bin", copy)
        assert copy.read_bytes() == data
        assert store.size("big/file.bin") == len(data)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_what_is_absent_is_said_to_be_absent(store: Store, tmp_path: Path) -> None:
    store.create("folder/file", b"1")
    for name in ("nothing", "folder", "folder/file/below"):
        assert not store.exists(name)
        with pytest.raises(FileNotFoundError):
            store.size(name)
        with pytest.raises(FileNotFoundError):
            store.read(name)
        with pytest.raises(FileNotFoundError):
            store.download(name, tmp_path / "copy")
        store.delete("nothing")
    assert list(tmp_path.glob("*copy*")) == []
    assert store.list("nothing") == []
    store.delete_tree("nothing")


def test_a_listing_is_sorted_complete_and_of_one_folder_only(store: Store) -> None:
    names = ["a/1", "a/2/3", "a/2/4", "a.txt", "ab/1"]
    for name in names:
        store.create(name, b"")
    assert store.list() == sorted(names)
    assert store.list("a") == ["a/1", "a/2/3", "a/2/4"]
    assert store.list("a/1") == []


def test_a_listing_is_never_stale(store: Store, store_url: str) -> None:
    other = Store.open(store_url)
    assert store.list("a") == [] and not store.exists("a/1")
    other.create("a/1", b"one")
    assert store.list("a") == ["a/1"] and store.exists("a/1")
    other.delete("a/1")
    assert store.list("a") == [] and not store.exists("a/1")


def test_delete_tree_takes_the_folder_and_nothing_beside_it(store: Store) -> None:
    for name in ("a/1", "a/b/2", "ab/3"):
        store.create(name, b"")
    store.delete_tree("a")
    assert store.list() == ["ab/3"]
    assert store.create("a/1", b"again")


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".hidden", "a b", "a*", "a?b", "a\\b", "é", "a\n"]
)
def test_ill_formed_names_are_refused_everywhere(name: str, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    with pytest.raises(ValueError, match="no name in a store"):
        check_name(name)
    for call in (store.read, store.size, store.exists, store.delete, store.delete_tree, store.local_path):
        with pytest.raises(ValueError, match="no name in a store"):
            call(name)
    with pytest.raises(ValueError, match="no name in a store"):
        store.create(name, b"")


def test_a_sound_store_passes_the_probe_and_is_left_clean(store: Store) -> None:
    store.probe()
    assert store.list() == []


def test_the_probe_refuses_a_store_that_overwrites(tmp_path: Path) -> None:
    class Overwriting(LocalBackend):
        def create(self, name: str, data: bytes) -> bool:
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return True

    store = Store(url="file:///careless", backend=Overwriting(tmp_path))
    with pytest.raises(StoreError, match="ignores conditional writes"):
        store.probe()
    assert store.list() == []


def test_a_write_that_is_cut_off_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path / "store"))
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)

    def disk_is_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_is_full)
        with pytest.raises(StoreError, match="No space left"):
            store.create("name", b"data")
        with pytest.raises(StoreError, match="No space left"):
            store.upload(source, "name")
    assert store.list() == []
    assert list((tmp_path / "store").iterdir()) == []


def test_private_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    (tmp_path / "source").write_bytes(b"secret")
    store.create("private/a/created", b"secret")
    store.upload(tmp_path / "source", "private/a/uploaded")
    for name in ("created", "uploaded"):
        path = store.local_path(f"private/a/{name}")
        assert path is not None and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "store" / "private").stat().st_mode) == 0o700


def test_delete_tree_also_takes_what_a_killed_writer_left(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    store.create("private/checkpoints/a", b"")
    (tmp_path / "store/private/checkpoints/.0123.tmp").write_bytes(b"half a checkpoint")
    assert store.list() == ["private/checkpoints/a"]
    store.delete_tree("private/checkpoints")
    assert not (tmp_path / "store/private/checkpoints").exists()


def test_only_a_folder_gives_local_paths(store: Store, tmp_path: Path) -> None:
    path = store.local_path("a/b")
    assert path == (tmp_path / "store/a/b" if store.url.startswith("file:") else None)


def test_pyarrow_reads_and_writes_the_same_storage(store: Store, tmp_path: Path) -> None:
    table = pa.table({"label": [1, 2, 3]})
    pq.write_table(table, tmp_path / "table.parquet")
    store.upload(tmp_path / "table.parquet", "data/table.parquet")
    file_system, root = store.arrow_filesystem()
    assert pq.read_table(f"{root}/data/table.parquet", filesystem=file_system).equals(table)


def test_a_plain_path_and_a_file_url_are_the_same_store(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    Store.open(str(folder)).create("a", b"1")
    for url in (folder.as_uri(), f"file://{folder}"):
        assert Store.open(url).read("a") == b"1"
        assert Store.open(url).url == folder.as_uri()


@pytest.mark.parametrize("url", ["file://relative", "ftp://host/x", "s3://", "memory://", "s3://bucket/a*"])
def test_urls_that_name_no_store_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="expected"):
        Store.open(url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="Cannot make the store's folder"):
        Store.open(str(tmp_path / "file"))


def test_a_missing_bucket_is_named(s3_endpoint: str) -> None:
    with pytest.raises(StoreError, match=r"There is no bucket 'no-such-bucket' at http://127\.0\.0\.1"):
        Store.open("s3://no-such-bucket/prefix")


def test_an_unreachable_server_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StoreError, match=f"Cannot connect to {endpoint} for bucket 'bucket'"):
        Store.open("s3://bucket")
