"""One seed, one story, one verdict.

A story is a grant, a few jobs that compete for it, processes that run them at once, and what befalls each process. Who
was killed comes back; in the end one process after the other runs each job undisturbed, until it is done or refused.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from privimage.errors import ArtifactDamaged, BudgetExceeded, LedgerBroken, PrivacyRefused, PrivimageError, Uncharged
from privimage.running.runs import Run
from privimage.store.backends import Backend, LocalBackend
from privimage.store.files import Store
from privimage.store.s3 import S3Backend
from tests.privacy.faults.baton import POLICIES, Baton, Process, current
from tests.privacy.faults.bench import MOMENTS, SHAPES, SHORT_SHAPES, Bench, Shape
from tests.privacy.faults.remote import ServersMemory
from tests.privacy.faults.storage import FAULTS, Below, Fault, FolderInWeather, InWeather, Killed, Planted
from tests.privacy.faults.witness import Judgement, Witness

__all__ = ["KINDS", "Kind", "Verdict", "kind_of_seed", "play"]

Kind = Literal["file", "s3"]
KINDS: tuple[Kind, ...] = ("file", "s3")
# Three of twenty: a request to the S3 server takes as long as thirty operations on a folder.
_TWENTY, _ON_S3 = 20, (5, 11, 17)

# What a fault is aimed at: operations that carry the protocol, and moments between operations.
AIMS = (
    "create entry",
    "list entry",
    "read entry",
    "create step",
    "list step",
    "create checkpoint",
    "read checkpoint",
    "list checkpoint",
    "delete checkpoint",
    "put payload",
    "create manifest",
    "read manifest",
    "delete payload",
    *MOMENTS,
)
_WEIGHTS: dict[Fault, int] = {
    "kill before": 20,
    "kill within": 10,
    "kill after": 22,
    "interrupt": 12,
    "refuse": 6,
    "lose reply": 8,
    "do twice": 6,
    "ask": 6,
    "stall": 16,
}
_REAL_NETWORK = 0.02
# What befalls the first two processes of some schedules, which by chance alone seldom comes together.
_DUETS: tuple[tuple[tuple[str, Fault], tuple[str, Fault]], ...] = (
    (("before door", "interrupt"), ("create entry", "stall")),  # one gives back while the other pays
    (("before door", "interrupt"), ("list entry", "stall")),
    (("after step", "stall"), ("create entry", "stall")),  # one seems dead and goes on while the other takes over
    (("after step", "stall"), ("list checkpoint", "stall")),
    (("create checkpoint", "stall"), ("read checkpoint", "stall")),
    (("before step", "stall"), ("create entry", "kill after")),
    (("put payload", "stall"), ("create manifest", "kill after")),
    (("create manifest", "stall"), ("create entry", "stall")),
)
_DUET = 0.2


@dataclass(kw_only=True)
class _Blow:
    """A fault that befalls a process at the `count`-th point of a kind ('' = of any kind)."""

    aim: str
    count: int
    fault: Fault


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A configuration that one or more processes run."""

    shape: Shape
    draws: dict[str, int]


@dataclass(kw_only=True)
class Verdict:
    """What came of one schedule."""

    seed: int
    kind: Kind
    judgement: Judgement
    processes: int = 0
    crashes: int = 0
    done: int = 0
    refused: int = 0
    points: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)


class _Story:
    """Weather for the store, scene for the stand-ins."""

    def __init__(self, seed: int, kind: Kind, bench: Bench, random: Random) -> None:
        self.random = random
        self.real_network = kind == "file" and random.random() < _REAL_NETWORK
        self.baton = Baton(random, random.choice(POLICIES))
        self.verdict = Verdict(seed=seed, kind=kind, judgement=Judgement())
        self.witness: Witness
        self.store: Store
        self._bench = bench
        self._blows: dict[str, list[_Blow]] = {}
        self._runs: dict[str, Run] = {}
        self.crowd = kind == "file"
        self.jobs = self._draw_jobs()
        self.targets = random.choice([1.0, 1.0, 1.5, 2.0, 3.0])

    def _draw_jobs(self) -> list[_Job]:
        random = self.random
        shape = random.choice(SHAPES if self.crowd and not self.real_network else SHORT_SHAPES)
        jobs = [_Job(shape=shape, draws={})]
        while len(jobs) < 3 and random.random() < (0.35 if self.crowd else 0.15):
            other = random.choice(["query", "finetune", "shape"])
            if other == "shape":
                jobs.append(_Job(shape=random.choice(SHORT_SHAPES), draws={}))
            else:
                jobs.append(_Job(shape=shape, draws={other: 2}))
        return jobs

    # ---------------------------------------------------------------- what befalls processes

    def fate(self, kind: str) -> Fault | None:
        process = current()
        if process is None:
            return None
        if process.dead:
            raise Killed
        self.baton.point()
        for blow in self._blows[process.name]:
            if blow.aim in ("", kind):
                blow.count -= 1
                if blow.count < 0:
                    self._blows[process.name].remove(blow)
                    self.verdict.faults[blow.fault] = self.verdict.faults.get(blow.fault, 0) + 1
                    if blow.fault == "ask":
                        self._runs[process.name].stop.ask()
                        return None
                    if blow.fault == "stall":
                        self.baton.sleep(self.random.choice([20, 60, 200, 1000]))
                        return None
                    return blow.fault
        return None

    def strike(self) -> Killed:
        process = current()
        if process is not None:
            process.dead = True
        return Killed()

    def done(self, kind: str, name: str) -> None:
        if kind == "create manifest":
            self.witness.manifest_seen(name)

    def moment(self, kind: str) -> None:
        match self.fate(kind):
            case "kill before" | "kill within" | "kill after":
                raise self.strike()
            case "interrupt":
                raise KeyboardInterrupt
            case "refuse" | "lose reply":
                raise Planted("the computation failed")

    def rest(self, seconds: float) -> None:
        """In place of time.sleep: whoever waits lets others go on."""
        if current() is None:
            _sleep(seconds)
        else:
            self.baton.sleep(1)

    # ---------------------------------------------------------------- processes

    def start_all(self) -> None:
        """One to three processes for each job."""
        random = self.random
        duet = random.choice(_DUETS) if random.random() < _DUET else ()
        for number, job in enumerate(self.jobs):
            processes = random.choice([1, 1, 2, 2, 3] if number == 0 and self.crowd else [1, 1, 2])
            for other in range(max(processes, len(duet)) if number == 0 else processes):
                lives = random.choice([1, 2, 3] if self.crowd else [1])
                name = self.start(10 * number + other, job, lives, blows=random.choice([1, 1, 2, 3]))
                if number == 0 and other < len(duet):
                    aim, fault = duet[other]
                    self._blows[name] = [_Blow(aim=aim, count=random.randrange(4), fault=fault)]

    def start(self, number: int, job: _Job, lives: int, blows: int) -> str:
        """A process that runs `job`, and comes back after a crash for so many more lives; returns its name."""
        random, name = self.random, f"process {number}.{lives}"
        faults = random.choices(FAULTS, [_WEIGHTS[fault] for fault in FAULTS], k=blows)
        self._blows[name] = [
            _Blow(aim="", count=random.randrange(160), fault=fault)
            if random.random() < 0.35
            else _Blow(aim=random.choice(AIMS), count=random.choice([0, 0, 0, 1, 1, 2, 3, 5]), fault=fault)
            for fault in faults
        ]
        self.verdict.processes += 1

        def life(process: Process) -> None:
            self._runs[process.name] = self._bench.run(self.store, job.shape, job.draws)
            if self._run(self._runs[process.name]) and lives:
                self.start(number, job, lives - 1, random.choice([0, 0, 1, 1, 2]) if lives > 1 else 0)

        self.baton.spawn(name, life)
        return name

    def _run(self, run: Run) -> bool:
        """Run the private stages; whether to come back."""
        try:
            self._bench.run_private_stages(run)
        except (Killed, KeyboardInterrupt, Planted):
            self.verdict.crashes += 1
            return True
        except BudgetExceeded:
            return False
        except (ArtifactDamaged, LedgerBroken) as error:
            self.verdict.judgement.damaged.append(f"a process met: {error}")
            return False
        except PrivimageError:
            self.verdict.crashes += 1
            return True
        except Exception as error:  # noqa: BLE001  a mistake of the library, whatever it is
            self.verdict.judgement.stranded.append(_unexpected(error))
            return True
        return False

    def finish(self, job: _Job, calm: Store) -> None:
        """Run a job undisturbed: it must end, or be refused for want of budget."""
        judgement = self.verdict.judgement
        try:
            ref = self._bench.run_private_stages(self._bench.run(calm, job.shape, job.draws))
        except (ArtifactDamaged, LedgerBroken) as error:
            judgement.damaged.append(f"the last process met: {error}")
        except Uncharged as error:
            judgement.stranded.append(str(error))
        except PrivacyRefused:
            self.verdict.refused += 1
        except PrivimageError as error:
            judgement.stranded.append(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  as above
            judgement.stranded.append(_unexpected(error))
        else:
            self.verdict.done += 1
            if not self.real_network and self._bench.trained_steps(calm, ref) != job.shape.num_steps:
                judgement.damaged.append(f"fine-tuning of {job.shape} went through another number of steps")

    def begin(self, folder: Path, remote: S3Backend | None) -> Store:
        """Open the store, in which processes are killed, and write the grant; return the same storage without faults.

        The URL is the schedule's own, since the library remembers by URL what it verified.
        """
        bench = self._bench
        weather: Backend
        calm: Backend
        seen: Backend
        if remote is None:
            shutil.copytree(bench.template, folder, copy_function=os.link)
            weather, calm, seen = FolderInWeather(folder, self), LocalBackend(folder), LocalBackend(folder)
        else:
            calm = Below(remote, folder.name, bench.fixed)
            weather, seen = InWeather(self, calm), ServersMemory(remote, folder.name, bench.fixed)
        url = f"faults://{folder.name}"
        self.store = Store(url=url, backend=weather)
        bench.grant(Store(url=url, backend=calm), self.targets)
        watched = Store(url=url, backend=seen)
        self.witness = Witness(watched, lambda: bench.open_ledger(watched), self.verdict.judgement)
        bench.scene = self
        return Store(url=url, backend=calm)


def _unexpected(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


_sleep = time.sleep


def kind_of_seed(seed: int) -> Kind:
    """Where the schedule of this seed is played, unless it is told otherwise."""
    return "s3" if seed % _TWENTY in _ON_S3 else "file"


def play(seed: int, bench: Bench, remote: S3Backend | None = None) -> Verdict:
    """Run the schedule of this seed in a folder, or below `remote`; `bench.stand_ins()` have to be in place."""
    begun = time.monotonic()
    random = Random(f"{seed} {'s3' if remote else 'file'}")
    story = _Story(seed, "s3" if remote else "file", bench, random)
    folder = bench.folder / f"schedule-{seed}-{time.monotonic_ns()}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", story.rest)
            # A fifth of all requests; schedules with create-only writes that are none show what it is for.
            patch.setattr(Store, "probe", lambda store: None)
            calm = story.begin(folder, remote)
            story.start_all()
            story.baton.run()
            story.witness.check()
            for job in story.jobs:
                story.finish(job, calm)
            story.witness.check()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    story.verdict.points = story.baton.time
    story.verdict.seconds = time.monotonic() - begun
    return story.verdict
