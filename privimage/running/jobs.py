"""Public stages that are made in parts: each by itself, in any order, on any machine that reaches the store.

    checkpoints/<stage>/<key>/part-<first>-<stop>-<SHA-256>.parquet

A part is one file. It is kept in the store as soon as it is made, so that a stage that was killed goes on with what is
missing, and a machine that makes one sends no data back. Nothing sensitive is made this way: a stage in parts is neither
charged nor sealed.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privimage.config.run import RunConfig
from privimage.errors import ArtifactDamaged, PrivimageError, StoreError
from privimage.machine.progress import Progress
from privimage.pipeline.stage import PartContext
from privimage.pipeline.table import stage_named
from privimage.release.code import code_digest
from privimage.store.artifacts import ArtifactRef, open_ref
from privimage.store.files import Store

__all__ = ["Job", "MapJobs", "collect_parts", "jobs_for", "make_part", "one_after_another"]

_NAME = re.compile(r"part-(\d+)-(\d+)-[0-9a-f]{64}\.parquet")
# A part uses all of the machine that it is made on, torch's one setting for the number of threads included.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a machine needs to make one part: a few kilobytes, without data.

    Attributes:
        first, stop: what the part is made of: numbers of images, or of files, as the stage has it.
        code: digest of the program that asks for it.
    """

    store: str
    stage: str
    key: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    first: int
    stop: int
    code: str

    @property
    def range(self) -> tuple[int, int]:
        return self.first, self.stop

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


MapJobs = Callable[[Sequence[Job], Progress], Generator[object, None, None]]
"""Calls `make_part` for each job, wherever it likes, and yields, in the order of the jobs, when one is done."""


def jobs_for(
    store: Store, stage: str, key: str, config: RunConfig, inputs: Mapping[str, ArtifactRef], ranges: Sequence[range]
) -> list[Job]:
    """A job for each of the ranges that a stage is cut into."""
    return [
        Job(
            store=store.url,
            stage=stage,
            key=key,
            config=config.model_dump(mode="json"),
            inputs={name: ref.to_json() for name, ref in inputs.items()},
            first=part.start,
            stop=part.stop,
            code=code_digest(),
        )
        for part in ranges
    ]


def make_part(job: Job, progress: Progress) -> None:
    """Make one part and keep it in the store. Parts of one process take turns.

    Raises:
        PrivimageError: this machine runs another version of the program.
        StoreError, ArtifactDamaged: the store or an input fails.
    """
    if job.code != code_digest():
        raise PrivimageError(
            f"A part of stage {job.stage} was sent to a machine with another version of privimage (code "
            f"{code_digest()[:12]}, expected {job.code[:12]}): install the same one on all machines of the cluster."
        )
    stage, store = stage_named(job.stage), Store.open(job.store, known=True)
    if stage.make_part is None:
        raise ValueError(f"Stage {job.stage} is not made in parts.")
    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="privimage-") as folder:
        file = Path(folder) / "part.parquet"
        stage.make_part(
            PartContext(
                config=RunConfig.model_validate(job.config),
                inputs={name: open_ref(store, ArtifactRef.from_json(ref)) for name, ref in job.inputs.items()},
                items=range(job.first, job.stop),
                file=file,
                progress=progress,
            )
        )
        store.upload(file, f"{_folder(job)}/part-{job.first:09d}-{job.stop:09d}-{_sha256(file)}.parquet")


def one_after_another(jobs: Sequence[Job], progress: Progress) -> Generator[None, None, None]:
    """Each in this process."""
    for job in jobs:
        make_part(job, progress)
        yield


def collect_parts(store: Store, jobs: Sequence[Job], map_jobs: MapJobs, progress: Progress, folder: Path) -> list[Path]:
    """Have all parts made that are not there yet; the files, in `folder`, as part-00000.parquet and so on.

    Raises:
        ArtifactDamaged: a part is not what its name says. It was deleted, so that the next run makes it again.
        StoreError: a part is gone again.
    """
    kept = _kept(store, jobs[0])
    with closing(map_jobs([job for job in jobs if job.range not in kept], progress)) as made:
        for _ in made:
            pass
    kept = _kept(store, jobs[0])
    missing = [job for job in jobs if job.range not in kept]
    if missing:
        raise StoreError(f"A part of stage {missing[0].stage} was removed while others were made: run it again.")
    files = [folder / f"part-{number:05d}.parquet" for number in range(len(jobs))]
    for job, file in zip(jobs, files, strict=True):
        _fetch(store, kept[job.range], file)
    return files


def _kept(store: Store, job: Job) -> dict[tuple[int, int], str]:
    """The parts of a job's stage that are in the store: names by range. Of one that was made twice, either will do."""
    names = store.list(_folder(job))
    found = ((_NAME.fullmatch(name.rpartition("/")[2]), name) for name in names)
    return {(int(part[1]), int(part[2])): name for part, name in found if part}


def _fetch(store: Store, name: str, file: Path) -> None:
    place = store.local_path(name)
    if place is None:
        digest = store.download(name, file)
    else:
        os.link(place, file)  # the stage's folder lies in the same store
        digest = _sha256(file)
    if f"-{digest}." not in name:
        store.delete(name)
        raise ArtifactDamaged(
            f"{name} in {store.url} was not what its name says, and was deleted: run the stage again."
        )


def _folder(job: Job) -> str:
    return f"checkpoints/{job.stage}/{job.key}"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
