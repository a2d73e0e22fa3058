"""What a network and a server do to a store on S3, and that it bears it: nothing lost, nothing twice, nothing half."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from privimage.errors import StoreError
from privimage.store import s3
from privimage.store.artifacts import list_artifacts
from privimage.store.files import Store, advice
from privimage.store.patience import Patience
from privimage.store.s3 import S3Backend
from tests.pipeline_fixtures import Answer
from tests.store.faulty_s3 import FAULTS, Fault, FaultyS3

pytestmark = pytest.mark.slow

MIB = 2**20
# The clock runs 40 times faster: an outage of 60 s is one of 1.5 s, and a store is patient for 4.5 s.
QUICK = Patience(seconds=4.5, first_wait=0.01, longest_wait=0.25)


@pytest.fixture
def faulty(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """Faults to be ordered between the store and its server."""
    with FaultyS3(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(s3_bucket: str, faulty: FaultyS3) -> Store:
    """A store whose every request goes by the faults; what fails is left to the store's own patience."""
    return Store(url=f"s3://{s3_bucket}/root", backend=S3Backend(s3_bucket, "root", QUICK, attempts=1))


def payload(folder: Path, size: int) -> Path:
    file = folder / "payload"
    file.write_bytes(secrets.token_bytes(size))
    return file


# ------------------------------------------------------------------ single faults


@pytest.mark.parametrize("fault", FAULTS)
def test_each_operation_gives_the_same_result_when_a_request_of_it_fails(
    store: Store, faulty: FaultyS3, fault: Fault, tmp_path: Path
) -> None:
    source = payload(tmp_path, 100_000)
    copy = tmp_path / "copy"

    def download() -> bytes:
        store.download("file", copy)
        return copy.read_bytes()

    operations: list[tuple[Callable[[], object], object]] = [
        (lambda: store.create("a", b"mine"), True),
        (lambda: store.create("a", b"other"), False),
        (lambda: store.read("a"), b"mine"),
        (lambda: store.upload(source, "file"), None),
        (download, source.read_bytes()),
        (lambda: store.size("file"), 100_000),
        (lambda: store.list(), ["a", "file"]),
        (lambda: store.delete("a"), None),
        (lambda: store.exists("a"), False),
        (lambda: store.delete_tree("file"), None),
    ]
    for operation, expected in operations:
        faulty.order(fault)
        before = len(faulty.seen)
        assert operation() == expected
        assert len(faulty.seen) > before + 1, "the fault struck and the request was sent again"
        faulty.clear()
    store.probe()


def test_a_create_whose_reply_is_lost_again_and_again_is_known_as_ones_own(store: Store, faulty: FaultyS3) -> None:
    faulty.order("lose reply", "PUT", times=3)
    assert store.create("entry", b"mine, with a random id")
    assert [method for method, _ in faulty.seen].count("PUT") == 4
    assert not store.create("entry", b"theirs")
    assert store.read("entry") == b"mine, with a random id"


def test_a_conflict_that_is_not_decided_yet_is_asked_again(store: Store, faulty: FaultyS3) -> None:
    """S3 answers 409 while a competing write is under way, whichever way that ends."""
    faulty.order("conflict", "PUT", times=2)
    assert store.create("a", b"mine")


def test_a_failed_condition_that_the_server_does_not_name_counts_as_existing(store: Store, faulty: FaultyS3) -> None:
    """Ceph answers 412 without a <Condition>."""
    store.create("a", b"theirs")
    faulty.order("fails", "PUT")
    assert not store.create("a", b"mine")
    faulty.order("fails", "PUT", times=10)
    with pytest.raises(StoreError, match="says that it exists, but it cannot be read"):
        store.create("absent", b"mine")


# ------------------------------------------------------------------ races


def test_of_24_writers_whose_requests_fail_at_random_one_wins(store: Store, faulty: FaultyS3) -> None:
    faulty.always(*FAULTS, rate=0.2)
    for number in range(5):
        start = threading.Barrier(24)

        def race(writer: int, name: str = f"race/{number}", start: threading.Barrier = start) -> bool:
            start.wait()
            return store.create(name, f"{writer} {name}".encode())

        with ThreadPoolExecutor(24) as threads:
            won = list(threads.map(race, range(24)))
        assert sum(won) == 1
        assert store.read(f"race/{number}") == f"{won.index(True)} race/{number}".encode()
    assert store.list() == [f"race/{number}" for number in range(5)]


def test_the_probe_refuses_a_server_that_ignores_conditions(store: Store, faulty: FaultyS3) -> None:
    faulty.order("ignore condition", "PUT", times=100)
    with pytest.raises(StoreError, match="ignores conditional writes"):
        store.probe()
    assert store.list() == []


# ------------------------------------------------------------------ outages


def test_a_server_that_is_gone_for_a_minute_is_waited_for(
    store: Store, faulty: FaultyS3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = payload(tmp_path, 1000)
    store.create("a", b"1")
    operations: list[Callable[[], object]] = [
        lambda: store.create("b", b"2"),
        lambda: store.read("a"),
        lambda: store.upload(source, "file"),
        lambda: store.list("nothing"),
        lambda: store.size("a"),
    ]
    with ThreadPoolExecutor(len(operations)) as threads:
        with faulty.gone():
            begun = time.monotonic()
            done = [threads.submit(operation) for operation in operations]
            time.sleep(1.5)
            assert not any(future.done() for future in done)
        assert [future.result(timeout=3) for future in done] == [True, b"1", None, [], 1]
    assert time.monotonic() - begun >= 1.5
    assert store.list() == ["a", "b", "file"]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("privimage")]
    assert len(told) == 2 * len(operations), "each tells once that it waits, and once that it goes on"
    assert any(f"{faulty.endpoint} fails" in line and "for up to 4 s" in line for line in told)


def test_a_store_that_is_known_is_opened_in_an_outage_and_one_that_is_new_is_refused(
    s3_bucket: str, store: Store, faulty: FaultyS3
) -> None:
    store.create("a", b"1")
    with faulty.gone():
        with pytest.raises(StoreError, match="Cannot connect to"):
            Store.open(store.url)
        again = Store.open(store.url, known=True)
    assert again.url == store.url and again.read("a") == b"1"


def test_a_run_that_begins_in_an_outage_waits_for_its_end_as_one_that_runs_does(
    s3_bucket: str, faulty: FaultyS3, privimage: Callable[..., Answer], tmp_path: Path, tiny_config: Path
) -> None:
    waits = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waits.set()

    log, heard = logging.getLogger("privimage.store.patience"), Heard()
    log.addHandler(heard)
    url = f"s3://{s3_bucket}/begun"
    try:
        with ThreadPoolExecutor(1) as threads:
            with faulty.gone():
                run = threads.submit(privimage, "run", tiny_config, "--store", url, "--until", "public")
                assert waits.wait(60)
                assert not run.done()
            answer = run.result(timeout=60)
    finally:
        log.removeHandler(heard)
    assert answer.code == 0, answer.err
    assert {artifact.ref.stage for artifact in list_artifacts(Store.open(url))} == {"public"}


def test_a_wrong_bucket_is_told_at_once_by_a_run_too(faulty: FaultyS3) -> None:
    with pytest.raises(StoreError, match="There is no bucket 'no-such-bucket'"):
        Store.open("s3://no-such-bucket/prefix", wait=True)
    assert len(faulty.seen) == 1


def test_of_a_bucket_that_was_deleted_it_is_not_said_that_nothing_is_lost(
    s3_bucket: str, store: Store, faulty: FaultyS3
) -> None:
    store.create("ledger/a/entries/000000.json", b"{}")
    store.backend.delete_tree("")
    faulty.client.delete_bucket(Bucket=s3_bucket)
    for operation in (lambda: store.read("ledger/a/entries/000000.json"), lambda: store.create("b", b"2")):
        with pytest.raises(StoreError, match="no bucket .* any more.*; restore it, with the ledger that was in it"):
            operation()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("away"),
        TimeoutError("late"),
        PermissionError("no"),
        *(OSError(number, "fails") for number in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENODEV, errno.ESTALE)),
    ],
)
def test_no_advice_promises_what_a_storage_that_fails_cannot_tell(error: OSError) -> None:
    assert "lost" not in advice(error)


def test_a_server_that_stays_away_ends_in_one_sentence_that_names_it(
    s3_bucket: str, faulty: FaultyS3, tmp_path: Path
) -> None:
    backend = S3Backend(s3_bucket, "", Patience(seconds=0.3, first_wait=0.01, longest_wait=0.1), attempts=1)
    store = Store(url=f"s3://{s3_bucket}", backend=backend)
    with faulty.gone():
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"Cannot read a in s3://.*tried again for 0 s.*AWS_ENDPOINT_URL"):
            store.read("a")
        assert time.monotonic() - begun < 10
        with pytest.raises(StoreError, match="Cannot upload"):
            store.upload(payload(tmp_path, 1000), "file")
    assert store.list() == []


def test_the_default_patience_outlasts_a_minute() -> None:
    assert Patience().seconds >= 120
    assert Patience().longest_wait <= 15


# ------------------------------------------------------------------ large objects


def test_a_large_upload_whose_parts_fail_is_whole_in_the_end(s3_bucket: str, faulty: FaultyS3, tmp_path: Path) -> None:
    """By default a part is sent again by itself, not the whole file."""
    store = Store(url=f"s3://{s3_bucket}", backend=S3Backend(s3_bucket, ""))
    source = payload(tmp_path, 50 * MIB)
    faulty.order("error 503", "PUT", "partNumber=2")
    faulty.order("reset", "PUT", "partNumber=3")
    store.upload(source, "big")
    assert sum(method == "POST" and "uploads" in path for method, path in faulty.seen) == 1
    faulty.order("cut", "GET", skip=1)
    store.download("big", tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(source)


def test_a_completed_upload_whose_reply_is_lost_is_whole(store: Store, faulty: FaultyS3, tmp_path: Path) -> None:
    source = payload(tmp_path, 33 * MIB)
    faulty.order("lose reply", "POST", "uploadId=")
    store.upload(source, "big")
    store.download("big", tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(source)


def test_nothing_is_visible_of_an_upload_that_never_ends(s3_bucket: str, faulty: FaultyS3, tmp_path: Path) -> None:
    backend = S3Backend(s3_bucket, "", Patience(seconds=0.3, first_wait=0.01, longest_wait=0.1), attempts=1)
    store = Store(url=f"s3://{s3_bucket}", backend=backend)
    faulty.order("error 500", "PUT", "partNumber=3", times=1000)
    with pytest.raises(StoreError, match="Cannot upload big"):
        store.upload(payload(tmp_path, 48 * MIB), "big")
    assert store.list() == []
    assert not store.exists("big")


def test_an_object_too_large_for_one_request_is_created_on_condition_or_not_at_all(
    store: Store, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of 5 GiB is shrunk; servers such as Ceph 16 ignore the condition where parts are put together."""
    monkeypatch.setattr(s3, "_LARGEST_PUT", 32 * MIB)
    mine, theirs = secrets.token_bytes(33 * MIB), secrets.token_bytes(33 * MIB)
    assert isinstance(store.backend, S3Backend)
    if store.backend._completes_on_condition:
        faulty.order("lose reply", "POST", "uploadId=")
        assert store.create("large", mine)
        assert not store.create("large", theirs)
        assert store.read("large") == mine
        store.delete("large")
    careless = Store(url=store.url, backend=S3Backend(store.backend.bucket, "root", QUICK, attempts=1))
    faulty.order("ignore condition", "POST", times=100)
    with pytest.raises(StoreError, match="has to be written in parts, and this server ignores If-None-Match"):
        careless.create("large", mine)
    assert store.list() == []


# ------------------------------------------------------------------ what is told


def test_a_bucket_that_may_not_be_listed_is_told_apart(s3_bucket: str, faulty: FaultyS3) -> None:
    faulty.order("deny", "GET")
    with pytest.raises(StoreError, match=f"Access to bucket '{s3_bucket}' at {faulty.endpoint} was denied"):
        Store.open(f"s3://{s3_bucket}")


def test_a_bucket_that_may_be_read_only_is_told_at_the_first_write(s3_bucket: str, faulty: FaultyS3) -> None:
    store = Store.open(f"s3://{s3_bucket}")
    faulty.order("deny", "PUT", times=100)
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"Access denied: cannot create a in s3://.*check credentials and permissions"):
        store.create("a", b"1")
    assert time.monotonic() - begun < 2, "what is refused is not asked again"


def test_a_bucket_that_vanished_is_no_empty_store(store: Store) -> None:
    assert isinstance(store.backend, S3Backend)
    store.backend._client.delete_bucket(Bucket=store.backend.bucket)
    for operation in (lambda: store.read("a"), lambda: store.list(), lambda: store.create("a", b"1")):
        with pytest.raises(StoreError, match="there is no bucket"):
            operation()


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_credentials_with_a_line_break_are_refused_without_being_shown(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "4711-hidden\n")
    with pytest.raises(StoreError, match=f"{variable} holds a line break or a blank") as caught:
        Store.open(f"s3://{s3_bucket}")
    assert "4711" not in str(caught.value)


def test_an_address_with_a_password_in_it_is_refused_without_being_shown(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:4711-hidden@127.0.0.1:9")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL holds a user name or password") as caught:
        Store.open(f"s3://{s3_bucket}")
    assert "4711" not in str(caught.value)


def test_no_credential_gets_into_objects_logs_or_errors(
    s3_bucket: str, faulty: FaultyS3, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    told = []
    with caplog.at_level(logging.DEBUG):
        store = Store.open(f"s3://{s3_bucket}")
        store.create("a", b"1")
        for fault in ("deny", "error 500"):
            faulty.order(fault, times=1000)
            impatient = S3Backend(s3_bucket, "", Patience(seconds=0.0), attempts=1)
            for operation in (lambda s: s.read("a"), lambda s: s.create("b", b""), lambda s: s.list()):
                with pytest.raises(StoreError) as caught:
                    operation(Store(url=store.url, backend=impatient))
                told.append(str(caught.value))
            with pytest.raises(StoreError) as caught:
                Store.open(f"s3://{s3_bucket}")
            told.append(str(caught.value))
            faulty.clear()
        store.arrow_filesystem()
    assert len(caplog.records) > 20, "the libraries tell much at this level"
    assert secret not in caplog.text
    assert secret not in "".join(told)
    assert all(" ".join(line.split()) == line and line.count("\n") == 0 for line in told)
    assert secret.encode() not in b"".join(store.read(name) for name in store.list())
    assert secret not in repr(store)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
