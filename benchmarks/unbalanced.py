"""Long-tailed copies of image sets in Parquet, for the suite `unbalanced-ablations`.

    python -m benchmarks.unbalanced [--of ../shared/data] [--to .privimage-unbalanced]
    python -m benchmarks unbalanced-ablations

Of each class of MNIST, Fashion-MNIST and CIFAR-10 so many images are kept, of training and test sets, that the most common class
has ten times as many as the rarest, and sizes fall evenly on a logarithmic scale between them. Which class is rare, and which of its
images are kept, is drawn once and for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SETS = ("mnist", "fashion_mnist", "cifar10")
MOST = {"train": 10_000, "test": 5_000}
IMBALANCE = 10.0


def main() -> None:
    """Write the files, and print the sizes of the classes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unbalanced", description=__doc__.splitlines()[0])
    parser.add_argument("--of", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--to", type=Path, default=Path(".privimage-unbalanced"), help="folder to write to")
    asked = parser.parse_args()
    missing = [file for name in SETS for part in MOST if not (file := asked.of / f"{name}_{part}.parquet").is_file()]
    if missing:
        parser.error(f"there is no {missing[0]}: give the folder of the Parquet files, --of FOLDER")
    asked.to.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        for part, most in MOST.items():
            table = pq.read_table(asked.of / f"{name}_{part}.parquet")
            rows = kept(table["label"].to_numpy(), most)
            few = table.take(pa.array(rows))
            pq.write_table(few, asked.to / f"{name}_{part}.parquet")
            sizes = np.bincount(few["label"].to_numpy()).tolist()
            print(f"{name}, {part}: {len(rows):,} images, of the classes {', '.join(map(str, sizes))}")


def kept(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The rows to keep, mixed, `most` of them or less."""
    available = np.bincount(labels)
    random = np.random.default_rng(0)
    shares = IMBALANCE ** -(random.permutation(len(available)) / (len(available) - 1))
    shares /= shares.sum()
    sizes = np.floor(min(float(most), float((available / shares).min())) * shares).astype(np.int64)
    rows = [random.choice(np.flatnonzero(labels == label), size, replace=False) for label, size in enumerate(sizes)]
    return random.permutation(np.concatenate(rows))


if __name__ == "__main__":
    main()
