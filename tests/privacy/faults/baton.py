"""Processes as threads of which exactly one runs: at each point a seeded generator chooses who goes on.

So a schedule is a function of its seed, and can be replayed. Three ways to choose are used, because each finds other
faults: uniformly; in bursts; and by random priorities with a few changes (Burckhardt et al. 2010), which finds what
needs one process to sleep for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import Literal

__all__ = ["POLICIES", "Baton", "Process", "current"]

Policy = Literal["uniform", "bursts", "priorities"]
POLICIES: tuple[Policy, ...] = ("uniform", "bursts", "priorities")

_BURST = 0.9
# About as many points as a schedule has; where priorities change is drawn from them.
_LENGTH = 600
_CHANGES = 4
_PATIENCE = 120.0

_here = threading.local()


class Process:
    """What stands for one operating-system process: once `dead`, it does nothing any more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.turn = threading.Semaphore(0)
        self.priority = 0.0
        self.asleep_until = 0


def current() -> Process | None:
    """The process that the calling thread stands for; None for the main thread and for helper threads."""
    found: Process | None = getattr(_here, "process", None)
    return found


class Baton:
    """Runs processes one at a time until all have ended; `point` is where another one may go on."""

    def __init__(self, random: Random, policy: Policy) -> None:
        self._random = random
        self._policy = policy
        self._alive: list[Process] = []
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._changes = {random.randrange(_LENGTH) for _ in range(_CHANGES)}
        self.time = 0

    def spawn(self, name: str, life: Callable[[Process], None]) -> None:
        """Begin a process; it first runs when it is chosen."""
        process = Process(name)
        process.priority = self._random.random()
        self._alive.append(process)

        def run() -> None:
            _here.process = process
            process.turn.acquire()
            try:
                life(process)
            except BaseException as failure:  # noqa: BLE001  a fault of the suite itself, told by `run`
                self._failure = self._failure or failure
            self._alive.remove(process)
            self._pass_on(None)

        threading.Thread(target=run, name=name, daemon=True).start()

    def run(self) -> None:
        """Until all processes have ended, those included that they spawn."""
        if not self._alive:
            return
        self._ended.clear()
        self._choose().turn.release()
        if not self._ended.wait(_PATIENCE):
            raise RuntimeError(f"The schedule hangs: {', '.join(process.name for process in self._alive)}.")
        if self._failure is not None:
            raise self._failure

    def point(self) -> None:
        """Let the schedule choose who goes on; called by the process that runs."""
        process = current()
        if process is not None:
            self._pass_on(process)

    def sleep(self, points: int) -> None:
        """Do not go on for so many points, unless nobody else can."""
        process = current()
        if process is not None:
            process.asleep_until = self.time + points
            process.priority = -self._random.random()
            self._pass_on(process)

    def _pass_on(self, process: Process | None) -> None:
        self.time += 1
        if not self._alive:
            self._ended.set()
            return
        chosen = self._choose(process)
        if chosen is process:
            return
        chosen.turn.release()
        if process is not None:
            process.turn.acquire()

    def _choose(self, running: Process | None = None) -> Process:
        awake = [process for process in self._alive if process.asleep_until <= self.time]
        if not awake:
            return min(self._alive, key=lambda process: process.asleep_until)
        match self._policy:
            case "uniform":
                return self._random.choice(awake)
            case "bursts":
                stay = running in awake and self._random.random() < _BURST
                return running if running is not None and stay else self._random.choice(awake)
            case "priorities":
                first = max(awake, key=lambda process: process.priority)
                if self.time in self._changes:
                    first.priority = -self._random.random()
                    first = max(awake, key=lambda process: process.priority)
                return first
