"""How long a run takes in which every stage is reused, beside Python's start.

    python -m benchmarks.reuse deployments/datasets/demo.yaml --store .privimage

The store must hold a finished run of the configuration. Medians of five alternating processes. With PREFECT_API_URL
set, the same as a Prefect flow on that server, whose target is 5 s beside Python's start with Prefect imported.
"""

from __future__ import annotations

import argparse
import json
import os
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
    if os.environ.get("PREFECT_API_URL"):
        commands["prefect_start"] = [sys.executable, "-c", "import flows.synthesize"]
        commands["flow"] = [sys.executable, "-m", "flows.synthesize", options.config, "--store", options.store]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            begun = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.monotonic() - begun)
    medians = {name: statistics.median(values) for name, values in times.items()}
    beside = {"run": medians["run"] - medians["python_start"]}
    if "flow" in medians:
        beside["flow"] = medians["flow"] - medians["prefect_start"]
    print(
        json.dumps(
            {
                **{f"seconds_of_{k}_beside_start": round(v, 2) for k, v in beside.items()},
                **{k: round(v, 2) for k, v in medians.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
