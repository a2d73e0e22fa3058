"""Stages in parts: the same result wherever parts are made, nothing made twice, and nothing private among them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privimage.errors import ArtifactDamaged, PrivimageError, Uncharged
from privimage.machine.progress import Progress
from privimage.pipeline.table import STAGES, stage_named, stage_of
from privimage.running import jobs as parts
from privimage.running.jobs import Job, one_after_another
from privimage.running.runner import run_all, run_stage
from privimage.running.runs import Run
from privimage.stages import synthesize
from privimage.store.artifacts import ArtifactRef, find, list_artifacts
from tests.pipeline_fixtures import Place


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four parts of the 40 images."""
    monkeypatch.setattr(synthesize, "PART_IMAGES", 10)


@pytest.fixture
def sampled(finished_copy: Place) -> tuple[Place, dict[str, ArtifactRef]]:
    """A finished run with other images to sample, and the input of that stage."""
    (finetune,) = (a.ref for a in list_artifacts(finished_copy.store) if a.ref.stage == "finetune")
    return finished_copy, {"finetune": finetune}


def backwards(jobs: Sequence[Job], progress: Progress) -> Generator[None, None, None]:
    """As on a cluster: the last part is there first, and some of them are made twice."""
    for job in [*reversed(jobs), *jobs[:2]]:
        parts.make_part(job, progress)
    for _ in jobs:
        yield


class Dies:
    """Makes a few parts and then fails, as a machine does."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.made: list[int] = []

    def __call__(self, jobs: Sequence[Job], progress: Progress) -> Generator[None, None, None]:
        for job in jobs:
            if len(self.made) == self.after:
                raise PrivimageError("The machine is gone.")
            parts.make_part(job, progress)
            self.made.append(job.first)
            yield


def sample(place: Place, inputs: dict[str, ArtifactRef], **more: Any) -> ArtifactRef:
    run = replace(place.run("synthesize.seed=7"), **more)
    return run_stage("synthesize", run, inputs).ref


def test_the_order_in_which_parts_are_made_changes_no_byte(
    sampled: tuple[Place, dict[str, ArtifactRef]], tmp_path: Path
) -> None:
    place, inputs = sampled
    other = place.copy_to(tmp_path / "other")
    one = sample(place, inputs)
    assert sample(other, inputs, map_jobs=backwards) == one
    artifact = find(place.store, "synthesize", one.key, False)
    assert artifact is not None and artifact.names == (*(f"images-0000{n}.parquet" for n in range(4)), "synthesis.json")
    assert place.store.list("checkpoints") == [], "parts are dropped once the artifact is there"


def test_a_stage_that_was_killed_makes_only_the_missing_parts(sampled: tuple[Place, dict[str, ArtifactRef]]) -> None:
    place, inputs = sampled
    with pytest.raises(PrivimageError, match="machine is gone"):
        sample(place, inputs, map_jobs=Dies(after=3))
    rest = Dies(after=99)
    sample(place, inputs, map_jobs=rest)
    assert rest.made == [30]


def test_a_damaged_part_is_refused_and_made_again(sampled: tuple[Place, dict[str, ArtifactRef]]) -> None:
    place, inputs = sampled
    with pytest.raises(PrivimageError, match="machine is gone"):
        sample(place, inputs, map_jobs=Dies(after=2))
    first = place.store.local_path(place.store.list("checkpoints/synthesize")[0])
    assert first is not None
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactDamaged, match="not what its name says, and was deleted: run the stage again"):
        sample(place, inputs)
    rest = Dies(after=99)
    sample(place, inputs, map_jobs=rest)
    assert rest.made == [0]


def test_a_machine_with_another_version_of_the_program_makes_no_part(
    sampled: tuple[Place, dict[str, ArtifactRef]],
) -> None:
    place, inputs = sampled

    def elsewhere(jobs: Sequence[Job], progress: Progress) -> Generator[None, None, None]:
        return one_after_another([replace(job, code="0" * 64) for job in jobs], progress)

    with pytest.raises(PrivimageError, match="another version of privimage .*: install the same one on all machines"):
        sample(place, inputs, map_jobs=elsewhere)
    assert place.store.list("checkpoints") == []


def test_only_public_stages_are_made_in_parts(granted_copy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {stage.name for stage in STAGES if stage.make_part} == {"index", "synthesize"}
    assert not any(stage.make_part and (stage.charge or stage.sealed or "admit" in stage.inputs) for stage in STAGES)
    # And the runner would refuse one that were not.
    query = stage_named("query")
    asks = replace(query, run=lambda context: context.make_parts([range(1)]))
    monkeypatch.setattr(
        "privimage.running.runner.stage_of", lambda name, config: asks if name == "query" else stage_of(name, config)
    )
    with pytest.raises(Uncharged, match="Stage query is not public, or not made in parts"):
        run_all(Run(config=granted_copy.run().config, store=granted_copy.store), "query")
