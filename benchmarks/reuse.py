"""How long a run takes in which every stage is reused, beside Python's start.

    python -m benchmarks.reuse deployments/datasets/demo.yaml --store .privimage

The store must hold a finished run of the configuration. Medians of five alternating pairs of processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--store", default=".privimage", metavar="URL")
    options = parser.parse_args()
    commands = {
        "python_start": [sys.executable, "-c", "pass"],
        "run": [sys.executable, "-m", "privimage.cli", "run", options.config, "--store", options.store],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            begun = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.monotonic() - begun)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        json.dumps(
            {
                "seconds_beside_start": round(medians["run"] - medians["python_start"], 2),
                **{k: round(v, 2) for k, v in medians.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
