"""Crashes and races against the ledger: `python -m tests.privacy.faults [N]`, with N schedules in all.

Each schedule follows from its seed, and every sixth plays on an S3 server; `--seed 17` plays number 17 alone and says all
that is wrong with it. Last line: {"schedules", "under_counts", "max_over_count_steps", "damaged_artifacts", ...} as
JSON; exit code 1 if the ledger ever counted too little or gave away too much, if a crash cost more than one block of
steps, if an artifact was damaged, or if a process was left in a state from which it could not go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.privacy.faults.schedule import KINDS, Verdict
from tests.privacy.faults.work import Raced, begin_work, play_all, race_on

AT_ONCE = 2
CHUNK = 24


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.privacy.faults", description=__doc__)
    parser.add_argument("schedules", nargs="?", type=int, default=2000, help="how many schedules in all")
    parser.add_argument("--seed", type=int, help="play this schedule alone")
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    if options.seed is not None:
        seeds = [options.seed]
    else:
        seeds = list(range(options.first, options.first + options.schedules))
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    total = _Total()
    memory = Path("/dev/shm")  # syncing to disk is not what is tried out here
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="faults-") as folder,
        ProcessPoolExecutor(
            AT_ONCE, mp_context=get_context("spawn"), initializer=begin_work, initargs=(Path(folder),)
        ) as workers,
    ):
        running: list[Future[list[Verdict] | Raced]] = [workers.submit(play_all, chunk) for chunk in chunks]
        running += [workers.submit(race_on, kind) for kind in KINDS if options.seed is None]
        for ended in as_completed(running):
            total.add(ended.result())
            done = sum(total.by_store.values())
            print(
                f"{time.monotonic() - begun:5.0f} s  {done} of {len(seeds)} schedules, {total.crashes} crashes",
                flush=True,
            )
    print(json.dumps({**total.as_json(), "seconds": round(time.monotonic() - begun, 1)}))
    return 0 if total.sound else 1


class _Total:
    """What all schedules say together; each one that is not sound is printed as it comes."""

    def __init__(self) -> None:
        self.by_store: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.crashes = 0
        self.over = 0
        self.races: dict[str, bool] = {}

    def add(self, results: list[Verdict] | Raced) -> None:
        if isinstance(results, Raced):
            self.races[results.kind] = results.sound
            print(results.text, flush=True)
            return
        for verdict in results:
            judgement = verdict.judgement
            self.by_store[verdict.kind] += 1
            self.crashes += verdict.crashes
            self.ends.update(done=verdict.done, refused=verdict.refused)
            self.over = max(self.over, judgement.max_over_count_steps)
            for what in ("under_counts", "over_counts", "damaged", "stranded"):
                self.wrong[what] += bool(getattr(judgement, what))
            for complaint in judgement.complaints:
                print(f"--seed {verdict.seed} ({verdict.kind}): {complaint}", flush=True)

    @property
    def sound(self) -> bool:
        return not sum(self.wrong.values()) and all(self.races.values())

    def as_json(self) -> dict[str, object]:
        return {
            "schedules": sum(self.by_store.values()),
            "under_counts": self.wrong["under_counts"],
            "max_over_count_steps": self.over,
            "damaged_artifacts": self.wrong["damaged"],
            "over_counts_beyond_block": self.wrong["over_counts"],
            "stranded": self.wrong["stranded"],
            "crashes": self.crashes,
            "jobs_done": self.ends["done"],
            "jobs_refused": self.ends["refused"],
            "by_store": dict(self.by_store),
            "races_sound": self.races,
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
