"""What one worker process of `python -m tests.privacy.faults` does: a bench of its own, an S3 server of its own."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from privimage.store.s3 import S3Backend
from tests.privacy.faults.bench import Bench, make_bench
from tests.privacy.faults.race import race
from tests.privacy.faults.remote import s3_bucket
from tests.privacy.faults.schedule import Kind, Verdict, kind_of_seed, play

__all__ = ["Raced", "begin_work", "play_all", "race_on"]

_until_the_process_ends = ExitStack()
_place: tuple[Bench, S3Backend] | None = None


@dataclass(frozen=True, kw_only=True)
class Raced:
    """What came of many writers at once."""

    kind: Kind
    sound: bool
    text: str


def begin_work(folder: Path) -> None:
    """Make the bench in a folder of this process below `folder`."""
    global _place
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    own = folder / str(os.getpid())
    own.mkdir()
    bench = make_bench(own)
    _until_the_process_ends.enter_context(bench.stand_ins())
    _place = bench, _until_the_process_ends.enter_context(s3_bucket())


def play_all(seeds: list[int]) -> list[Verdict]:
    """The schedules of these seeds, one after the other."""
    bench, bucket = _here()
    return [play(seed, bench, bucket if kind_of_seed(seed) == "s3" else None) for seed in seeds]


def race_on(kind: Kind) -> Raced:
    """Many writers for the last of a budget."""
    bench, bucket = _here()
    raced = race(bench, bucket if kind == "s3" else None)
    return Raced(kind=kind, sound=raced.sound, text=f"race on {kind}: {raced}")


def _here() -> tuple[Bench, S3Backend]:
    if _place is None:
        raise RuntimeError("begin_work was not called in this process.")
    return _place
