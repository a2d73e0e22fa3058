"""The store on S3 beside plain boto3, the race for one name, and selecting from an index.

    tests/store/with_ceph.sh python -m benchmarks.s3            against Ceph
    python -m benchmarks.s3                                     against the server that the AWS variables name

An artifact of one file of 100 MB is published and read back, digests computed and checked, in turns with boto3's
`upload_file` and `download_file` of the same file, as they are by default; medians. The race: 24 writers, 100 rounds,
each writer a store of its own. Selecting: 10 of 1,000 categories from an index of 1,280,000 rows, once as the stage
does, which fetches the file and checks its digest, and once by pyarrow's own file system straight from the store;
both from opening the store on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np

from privimage.semantics.index import INDEX_FILE, INDEX_GROUP, IndexWriter, open_index, rows_of_categories
from privimage.store.artifacts import Artifact, publish
from privimage.store.files import Store

CATEGORIES = 1000
WRITERS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1_280_000)
    options = parser.parse_args()
    with new_bucket() as bucket, tempfile.TemporaryDirectory() as folder:
        found = {
            **transfer(bucket, Path(folder), options.megabytes, options.repeats),
            **race(bucket, options.rounds),
            **select(bucket, Path(folder), options.rows),
        }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


@contextmanager
def new_bucket() -> Iterator[str]:
    """A bucket that is deleted afterwards, with all that is in it."""
    client, name = boto3.client("s3"), f"benchmark-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        Store.open(f"s3://{name}").backend.delete_tree("")
        client.delete_bucket(Bucket=name)


def transfer(bucket: str, folder: Path, megabytes: int, repeats: int) -> dict[str, float]:
    payload, copy = folder / "payload", folder / "copy"
    payload.mkdir()
    (payload / "file").write_bytes(secrets.token_bytes(megabytes * 1_000_000))
    client, store = boto3.client("s3"), Store.open(f"s3://{bucket}/store")
    times: dict[str, list[float]] = {"publish": [], "boto3_upload": [], "read": [], "boto3_download": []}
    published: list[Artifact] = []
    ways: dict[str, Callable[[], object]] = {
        "publish": lambda: published.append(publish_folder(store, payload)),
        "boto3_upload": lambda: client.upload_file(str(payload / "file"), bucket, "boto3/file"),
        "read": lambda: published[-1].local("file"),
        "boto3_download": lambda: client.download_file(bucket, "boto3/file", str(copy)),
    }
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(seconds(way))
        # Neither way may be slowed down by the disk that writes out what the other one left.
        published.pop().local("file").unlink()
        copy.unlink()
        store.delete_tree("artifacts")
    medians = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    pairs = zip(times["publish"], times["read"], times["boto3_upload"], times["boto3_download"], strict=True)
    ratio = statistics.median((publish + read) / (up + down) for publish, read, up, down in pairs)
    print(f"{megabytes} MB there and back: {ratio:.2f} times boto3")
    return {**medians, "ratio_to_boto3": ratio}


def publish_folder(store: Store, folder: Path) -> Artifact:
    facts: dict[str, Any] = {"config": {}, "inputs": {}, "metrics": {}, "reservations": [], "provenance": {}}
    key = secrets.token_hex(32)
    return publish(store, stage="benchmark", version=1, key=key, draw=1, sealed=False, folder=folder, **facts)


def race(bucket: str, rounds: int) -> dict[str, float]:
    stores = [Store.open(f"s3://{bucket}/race") for _ in range(WRITERS)]
    start = threading.Barrier(WRITERS)
    wrong = 0
    begun = time.monotonic()
    with ThreadPoolExecutor(WRITERS) as threads:

        def write(writer: int, name: str) -> bool:
            start.wait()
            return stores[writer].create(name, secrets.token_bytes(500))

        for number in range(rounds):
            won = sum(threads.map(write, range(WRITERS), [str(number)] * WRITERS))
            wrong += won != 1
    took = time.monotonic() - begun
    print(f"{rounds} races of {WRITERS} writers: {wrong} without exactly one winner, {took:.1f} s")
    return {"race_rounds": rounds, "race_rounds_without_one_winner": wrong, "race_seconds": took}


def select(bucket: str, folder: Path, rows: int) -> dict[str, float]:
    payload = folder / "index"
    payload.mkdir()
    write_index(payload, rows)
    index = publish_folder(Store.open(f"s3://{bucket}/store"), payload)
    name = f"artifacts/benchmark/{index.ref.key}/{index.manifest.payload}/{INDEX_FILE}"
    categories = list(range(0, CATEGORIES, CATEGORIES // 10))
    found: list[Any] = []

    def as_the_stage() -> None:
        again = Artifact(store=Store.open(f"s3://{bucket}/store"), manifest=index.manifest)
        found.append(rows_of_categories(open_index(again.local(INDEX_FILE)), categories))

    def by_arrow() -> None:
        filesystem, root = Store.open(f"s3://{bucket}/store").arrow_filesystem()
        found.append(rows_of_categories(open_index(f"{root}/{name}", filesystem), categories))

    times = {"select_seconds": seconds(as_the_stage), "select_arrow_seconds": seconds(by_arrow)}
    if found[0].num_rows != rows * len(categories) // CATEGORIES or not found[0].equals(found[1]):
        raise SystemExit("Both ways must find the same rows.")
    print(f"10 of {CATEGORIES:,} categories from {rows:,} rows: {times}")
    return {"select_rows": rows, "index_mb": (payload / INDEX_FILE).stat().st_size / 1e6, **times}


def write_index(folder: Path, rows: int) -> None:
    """By the real writer, without predictions, which nobody reads."""
    names = [f"category {number}" for number in range(CATEGORIES)]
    sizes = [50_000] * (rows // 50_000) + [rows % 50_000]
    with IndexWriter(folder, category_names=names, table_digest="0" * 64, shard_sizes=sizes) as index:
        for at in range(0, rows, INDEX_GROUP):
            ids = np.arange(at, min(at + INDEX_GROUP, rows))
            index.add(ids, (ids * CATEGORIES // rows).astype(np.int32))


def seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


if __name__ == "__main__":
    if not os.environ.get("AWS_ENDPOINT_URL"):
        raise SystemExit("Set AWS_ENDPOINT_URL and credentials, or start it by tests/store/with_ceph.sh.")
    main()
