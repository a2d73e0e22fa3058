"""The stages as Prefect tasks: one for each stage of the pipeline, and one that looks before anything is spent."""

from __future__ import annotations

from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State

from privimage.pipeline.stage import Stage
from privimage.pipeline.table import STAGES
from tasks.policies import PRIVATE_STAGE, PUBLIC_STAGE, SMALL
from tasks.running import Reference, Request, check_request, reference_or_reused

__all__ = ["STAGE_TASKS", "check"]


@task(name="check", task_run_name="check-{request[label]}", **SMALL)
def check(request: Request, public: Reference, admit: Reference, last: str | None) -> None:
    """Configuration against admitted data and ledger: fails here rather than after hours of training."""
    check_request(request, public, admit, last)


def _as_task(stage: Stage) -> Task[..., Any]:
    def run(request: Request, inputs: dict[str, Reference]) -> Reference | State[Any]:
        return reference_or_reused(stage.name, request, inputs)

    touches = stage.charge is not None or stage.sealed
    return Task(
        run,
        name=stage.name,
        description=stage.about,
        task_run_name=f"{stage.name}-{{request[label]}}",
        **(PRIVATE_STAGE if touches else PUBLIC_STAGE),
    )


STAGE_TASKS: dict[str, Task[..., Any]] = {stage.name: _as_task(stage) for stage in STAGES}
"""By the stage's name; each takes a request and the references of the stage's inputs, and returns a reference."""
