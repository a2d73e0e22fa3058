"""What all stage tasks share: open the store, run the stage, tell Prefect what happened."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled, Completed

from privimage.config.run import RunConfig
from privimage.errors import Stopped
from privimage.machine.interrupts import StopRequest
from privimage.running.plan import RunPlan, plan_run
from privimage.running.runner import check_run, run_stage
from privimage.running.runs import Run
from privimage.store.artifacts import ArtifactRef, open_ref
from privimage.store.files import Store
from tasks.jobs import map_on
from tasks.policies import wait_for_turn
from tasks.progress import PrefectProgress
from tasks.showing import show_made, show_plan, show_release

__all__ = ["STOP", "Reference", "Request", "check_request", "plan_request", "reference_or_reused", "request_for"]

Reference = dict[str, Any]
"""A small JSON name of one artifact: stage, key, digest, sealed."""

Request = dict[str, Any]
"""What to run, as JSON: `config`, `store` (its URL), `draws` (by stage), `label` (for names of runs)."""

STOP: ContextVar[StopRequest | None] = ContextVar("STOP", default=None)
"""The flow's wish to stop; its tasks' threads inherit it."""


def request_for(config: RunConfig, store: str, draws: Mapping[str, int]) -> Request:
    """What a flow hands to its tasks; the store is looked at here, and by none of them once more.

    Raises:
        StoreError: as `Store.open`.
    """
    Store.open(store, wait=True)
    return {
        "config": config.model_dump(mode="json"),
        "store": store,
        "draws": dict(draws),
        "label": f"{config.name}-eps{config.privacy.epsilon:g}",
    }


def reference_or_reused(stage: str, request: Request, inputs: Mapping[str, Reference]) -> Reference | State[Any]:
    """Run one stage; the state is named `Reused`, and says since when, if its artifact was there already.

    Asked to stop, it ends in a state named `Stopped`: the next run goes on from there.
    """
    run = _run(request, stage)
    try:
        result = run_stage(stage, run, {name: ArtifactRef.from_json(reference) for name, reference in inputs.items()})
    except Stopped as stopped:
        return Cancelled(name="Stopped", message=str(stopped))
    artifact = open_ref(run.store, result.ref)
    if not result.reused:
        show_made(run.config, artifact)
    if stage == "release":
        show_release(run.config, run.store, artifact)
    reference = result.ref.to_json()
    if result.reused:
        return Completed(name="Reused", message=f"{stage} {result.ref.key[:12]}, made {result.written}", data=reference)
    get_run_logger().info("%s %s made in %.1f s", stage, result.ref.key[:12], result.seconds)
    return reference


def check_request(request: Request, public: Reference, admit: Reference, last: str | None) -> None:
    """Compare the configuration with the admitted data and their ledger, before anything long or costly is started."""
    check_run(_run(request), ArtifactRef.from_json(public), ArtifactRef.from_json(admit), last)


def plan_request(request: Request, last: str | None) -> RunPlan:
    """What would be run and charged, shown as a table; nothing is run."""
    run = _run(request)
    plan = plan_run(run, last)
    show_plan(run.config, plan)
    return plan


def _run(request: Request, stage: str = "") -> Run:
    config = RunConfig.model_validate(request["config"])
    return Run(
        config=config,
        store=Store.open(request["store"], known=True),
        progress=PrefectProgress(config.name, stage),
        draws=request["draws"],
        map_jobs=map_on(config.performance),
        provenance={"prefect_flow_run": str(flow_run.get_id() or ""), "prefect_task_run": str(task_run.get_id() or "")},
        stop=STOP.get() or StopRequest(),
        turn=wait_for_turn,
    )
