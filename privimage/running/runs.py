"""A run: a configuration bound to a store, and the keys of what its stages make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from privimage.config.run import RunConfig
from privimage.machine.interrupts import StopRequest
from privimage.machine.progress import Progress, Silent
from privimage.pipeline.stage import Stage
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.running.jobs import MapJobs, one_after_another
from privimage.store.artifacts import artifact_key, blind
from privimage.store.files import Store

__all__ = ["Run", "stage_key"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A configuration bound to a store.

    Attributes:
        draws: stages of which another, independent run is asked for, by number; a private stage is charged again.
        provenance: who runs this (such as Prefect's run id), for the manifests.
        insecure_random_voiding_guarantee: tests only; everything made with it says `guarantee: none`.
        stop: ask it, and the run stops where nothing is lost, by raising Stopped.
        map_jobs: how the parts of a stage are made: in this process, or on a cluster.
        turn: entered while a stage computes, such as to wait for a free GPU; a reused stage does not wait.
        as_steward: the data steward is here, and may be told whether a public set holds sensitive images (`granting`).
    """

    config: RunConfig
    store: Store
    progress: Progress = field(default_factory=Silent)
    draws: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    insecure_random_voiding_guarantee: InsecureRandomForTests | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    map_jobs: MapJobs = one_after_another
    turn: Callable[[Stage], AbstractContextManager[object]] = lambda stage: nullcontext()
    as_steward: bool = False


def stage_key(stage: Stage, run: Run, digests: Mapping[str, str]) -> str:
    """The key of what `stage` makes from inputs with these content digests.

    A sealed stage's key is blinded: it hashes names and sizes of sensitive files, and is named in public manifests.
    """
    key = artifact_key(
        stage=stage.name,
        version=stage.version,
        config=stage.fields(run.config),
        inputs=digests,
        draw=run.draws.get(stage.name, 1),
    )
    return blind(run.store, key) if stage.sealed else key
