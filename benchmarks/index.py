"""The public side at the size of ImageNet and ten times that: building the index, and selecting from it.

    python -m benchmarks.index [--rows 1280000] [--select-rows 14000000] [--folder DIR]

The images are 16 distinct ones of 8 x 8 pixels, the categories 1,000, the network the smallest there is: what is
measured is the way of the images, not the network. Each part runs in a process of its own. Seconds leave out imports;
peaks are of resident memory and hold these (`build_before_mb` is what was resident before the first image). `half` is
another build, of half the rows: memory must not depend on their number.

Selecting is all that stage `select` does, from the query's histogram to the written file: 5 categories for each of 10
classes. `all` selects all rows and keeps 5 % at random, the most there can be to do. On S3, a server on the loopback
interface, 10 categories are selected from the index that was built: once by pyarrow's own file system, and once as the
stage does, by fetching the file and checking its digest. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

CATEGORIES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--select-rows", type=int, default=14_000_000)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, *arguments = options.part
        print(json.dumps({**PARTS[name](*arguments), "peak_mb": memory_mb("VmHWM")}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.rows, options.select_rows)


def measure(folder: Path, rows: int, select_rows: int) -> None:
    print(f"{'':34}{'rows':>12}{'seconds':>9}{'rows/s':>12}{'peak MB':>9}")
    for name, count in (("half", rows // 2), ("whole", rows)):
        shown(f"image table, {name}", count, part("table", folder / name, count))
    half = shown("index, half", rows // 2, part("build", folder / "half"))
    whole = shown("index, whole", rows, part("build", folder / "whole"))
    shown("large index, written", select_rows, part("large", folder / "large", select_rows))
    index = folder / "large" / "index.parquet"
    select = shown("select 50 of 1,000 categories", select_rows, part("select", index, 5, 0))
    every = shown("select all, keep 5 %", select_rows, part("select", index, CATEGORIES // 10, select_rows // 20))
    remote = on_s3(folder / "whole" / "index.parquet")
    shown("S3: 10 of 1,000, pyarrow", rows, {"seconds": remote["arrow_seconds"], "peak_mb": remote["peak_mb"]})
    shown("S3: 10 of 1,000, as the stage", rows, {"seconds": remote["stage_seconds"], "peak_mb": remote["peak_mb"]})
    found = {
        "rows": rows,
        "build_seconds": whole["seconds"],
        "build_peak_mb": whole["peak_mb"],
        "build_peak_mb_half": half["peak_mb"],
        "build_before_mb": whole["before_mb"],
        "select_rows": select_rows,
        "select_seconds": select["seconds"],
        "select_peak_mb": select["peak_mb"],
        "select_all_seconds": every["seconds"],
        "select_all_peak_mb": every["peak_mb"],
        "s3_select_seconds": remote["arrow_seconds"],
        "s3_stage_select_seconds": remote["stage_seconds"],
        "index_mb": round(index.stat().st_size / 1e6, 2),
    }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


def shown(name: str, rows: int, found: dict[str, float]) -> dict[str, float]:
    rate = rows / max(found["seconds"], 1e-3)
    print(f"{name:34}{rows:>12,}{found['seconds']:>9.2f}{rate:>12,.0f}{found['peak_mb']:>9.0f}", flush=True)
    return found


def part(name: str, *arguments: object) -> dict[str, float]:
    """Run a part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.index", "--part", name, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_mb(which: str) -> int:
    """Resident set of this process, VmRSS now or VmHWM at its peak; `getrusage` would count the parent's as well."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which)]
    return round(int(line.split()[1]) / 1024)


def write_table(folder: str, rows: str) -> dict[str, float]:
    from privimage.config.images import ImageConfig
    from privimage.data.table import TableWriter, encode_png

    pictures = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), dtype=np.uint8)
    pngs = [encode_png(picture) for picture in pictures]
    begun, count = time.monotonic(), int(rows)
    names = [f"category {number}" for number in range(CATEGORIES)]
    with TableWriter(Path(folder), "images", names, ImageConfig(resolution=8, channels=1)) as table:
        for number in range(count):
            table.add_png(pngs[number % 16], number * CATEGORIES // count)
    return {"seconds": time.monotonic() - begun}


def build(folder: str) -> dict[str, float]:
    import pyarrow.parquet as pq
    import torch

    from privimage.config.classifier import ClassifierConfig
    from privimage.data.table import iterate_images
    from privimage.semantics.classifier import new_classifier
    from privimage.semantics.index import write_index, write_predictions
    from privimage.stages.index import INDEX_BATCH

    files = sorted(Path(folder).glob("images-*.parquet"))
    config = ClassifierConfig(base_channels=4, blocks=(1,))
    model = new_classifier(config, channels=1, num_categories=CATEGORIES)
    before, begun = memory_mb("VmRSS"), time.monotonic()
    predictions = [file.with_name(file.name.replace("images", "predictions")) for file in files]
    for file, made in zip(files, predictions, strict=True):
        write_predictions(made, iterate_images([file], INDEX_BATCH), model, torch.device("cpu"))
    write_index(
        Path(folder),
        predictions,
        category_names=[f"category {number}" for number in range(CATEGORIES)],
        table_digest="0" * 64,
        num_images=sum(pq.read_metadata(file).num_rows for file in files),
    )
    return {"seconds": time.monotonic() - begun, "before_mb": before}


def write_large(folder: str, rows: str) -> dict[str, float]:
    """An index by the real writer, without predictions."""
    from privimage.semantics.index import INDEX_GROUP, IndexWriter

    Path(folder).mkdir()
    begun, count = time.monotonic(), int(rows)
    names = [f"category {number}" for number in range(CATEGORIES)]
    sizes = [50_000] * (count // 50_000) + [count % 50_000]
    with IndexWriter(Path(folder), category_names=names, table_digest="0" * 64, shard_sizes=sizes) as index:
        for at in range(0, count, INDEX_GROUP):
            ids = np.arange(at, min(at + INDEX_GROUP, count))
            index.add(ids, (ids * CATEGORIES // count).astype(np.int32))
    return {"seconds": time.monotonic() - begun}


def select(path: str, categories_per_class: str, max_rows: str) -> dict[str, float]:
    import pyarrow.parquet as pq

    from privimage.methods.selections.assignment import assign_categories
    from privimage.semantics.index import ROW_ENCODING, open_index
    from privimage.semantics.selection import select_rows

    histogram = np.random.default_rng(0).normal(100.0, 50.0, (10, CATEGORIES))
    begun = time.monotonic()
    picks = assign_categories(histogram, int(categories_per_class))
    rows = select_rows(open_index(path), picks, num_categories=CATEGORIES, max_rows=int(max_rows) or None, seed=0)
    pq.write_table(rows, Path(path).with_name("selected.parquet"), **ROW_ENCODING)
    return {"seconds": time.monotonic() - begun, "selected": rows.num_rows}


def on_s3(index: Path) -> dict[str, float]:
    """Upload the index to a server in this process, and select from it in another."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with urlopen(Request(f"http://{host}:{port}/benchmark", method="PUT")):
            return part("s3", index)
    finally:
        server.stop()


def select_on_s3(index: str) -> dict[str, float]:
    from privimage.semantics.index import open_index, rows_of_categories
    from privimage.store.files import Store

    store = Store.open("s3://benchmark/store")
    store.upload(Path(index), "index.parquet")
    digest = hashlib.sha256(Path(index).read_bytes()).hexdigest()
    categories = list(range(0, CATEGORIES, CATEGORIES // 10))
    begun = time.monotonic()
    filesystem, root = store.arrow_filesystem()
    by_arrow = rows_of_categories(open_index(f"{root}/index.parquet", filesystem), categories)
    arrow_seconds, begun = time.monotonic() - begun, time.monotonic()
    copy = Path(index).with_name("copy.parquet")
    store.download("index.parquet", copy)
    if hashlib.sha256(copy.read_bytes()).hexdigest() != digest:
        raise SystemExit("The copy differs from what was uploaded.")
    if not rows_of_categories(open_index(copy), categories).equals(by_arrow):
        raise SystemExit("Both ways must find the same rows.")
    return {"arrow_seconds": arrow_seconds, "stage_seconds": time.monotonic() - begun}


PARTS: dict[str, Any] = {
    "table": write_table,
    "build": build,
    "large": write_large,
    "select": select,
    "s3": select_on_s3,
}


if __name__ == "__main__":
    main()
