"""What moto lets pass and a real server does not; collected by `make test-s3` only."""

from __future__ import annotations

import os
import re
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from privimage.errors import StoreError
from privimage.store.files import Store
from privimage.store.s3 import S3Backend, s3_client


def test_of_24_writers_one_wins_in_each_of_100_rounds(s3_bucket: str) -> None:
    stores = [Store.open(f"s3://{s3_bucket}/race") for _ in range(24)]
    for number in range(100):
        start = threading.Barrier(24)

        def race(writer: int, name: str = f"round/{number}", start: threading.Barrier = start) -> bool:
            start.wait()
            return stores[writer].create(name, str(writer).encode() * 500)

        with ThreadPoolExecutor(24) as threads:
            won = list(threads.map(race, range(24)))
        assert sum(won) == 1
        assert stores[0].read(f"round/{number}") == str(won.index(True)).encode() * 500


def test_a_bucket_of_somebody_else_is_denied(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["STRANGER_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["STRANGER_SECRET_ACCESS_KEY"])
    with pytest.raises(StoreError, match=f"Access to bucket '{s3_bucket}' at .* was denied .AccessDenied"):
        Store.open(f"s3://{s3_bucket}")


@pytest.mark.parametrize(
    ("variable", "code"),
    [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")],
)
def test_wrong_credentials_are_denied_and_not_shown(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, code: str
) -> None:
    wrong = secrets.token_hex(20)
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(StoreError, match=f"Access to bucket '{s3_bucket}' at .* was denied .{code}") as caught:
        Store.open(f"s3://{s3_bucket}")
    assert wrong not in str(caught.value)


def test_with_the_policy_of_the_handbook_a_reader_sees_releases_and_nobody_deletes_a_ledger(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handbook = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (policy,) = re.findall(r"```json\n(.+?)```", handbook, re.DOTALL)
    owner = Store.open(f"s3://{s3_bucket}/store")
    for name in ("releases/demo/synthetic.parquet", "private/identity.key", "ledger/a/entries/000000.json"):
        owner.create(name, b"1")
    filled = policy.replace("BUCKET", s3_bucket).replace("READER", "stranger")
    s3_client(attempts=1).put_bucket_policy(Bucket=s3_bucket, Policy=filled)

    with pytest.raises(StoreError, match="Access denied: cannot delete ledger/a"):
        owner.delete("ledger/a/entries/000000.json")
    owner.delete("private/identity.key")
    owner.create("private/identity.key", b"1")

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["STRANGER_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["STRANGER_SECRET_ACCESS_KEY"])
    release = Store.open(f"s3://{s3_bucket}/store/releases/demo")
    assert release.list() == ["synthetic.parquet"]
    assert release.read("synthetic.parquet") == b"1"
    with pytest.raises(StoreError, match="Access denied"):
        release.create("forged", b"1")
    with pytest.raises(StoreError, match="was denied"):
        Store.open(f"s3://{s3_bucket}/store")
    with pytest.raises(StoreError, match="was denied"):
        Store.open(f"s3://{s3_bucket}/store/private")
    beside = Store(url=release.url, backend=S3Backend(s3_bucket, "store"))
    for name in ("private/identity.key", "ledger/a/entries/000000.json"):
        with pytest.raises(StoreError, match="Access denied: cannot read"):
            beside.read(name)
