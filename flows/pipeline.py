"""What the flows have in common: stages one after the other, each made or reused; a plan first, approval if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.approval import approval_is_required, ask_for_approval
from flows.server import check_server
from privimage.config.run import RunConfig
from privimage.errors import InputError
from privimage.machine.interrupts import StopRequest
from privimage.pipeline.stage import Stage
from privimage.pipeline.table import STAGES, stages_until
from privimage.running.plan import RunPlan, plan_run, refuse
from privimage.running.runs import Run
from privimage.store.files import Store
from tasks.policies import COMPUTING
from tasks.running import STOP, plan_request, request_for
from tasks.showing import plan_in_words
from tasks.stages import STAGE_TASKS, check

__all__ = ["ONE_AT_A_TIME", "Keys", "run_stages"]

ONE_AT_A_TIME: TaskRunner[Any] = cast(TaskRunner[Any], ThreadPoolTaskRunner(max_workers=1))
"""Of the tasks of a flow: each stage uses the whole device."""

Keys = dict[str, str]
"""Keys of the artifacts, by stage."""

Futures = dict[str, "PrefectFuture[Any]"]


def run_stages(
    config: RunConfig,
    store: str,
    draws: Mapping[str, int],
    *,
    first: str = STAGES[0].name,
    last: str | None = None,
    dry_run: bool = False,
) -> Keys | State[Any]:
    """Make, or reuse, the stages that `last` needs (None: all); those before `first` have to be there already.

    Must be called in a flow, on the main thread. A signal stops the run where nothing is lost, then Prefect sees it.

    Raises:
        InputError: the server is too old, a stage before `first` is missing, or the worker lacks the device.
        PrivimageError: as for `privimage.running.runner.run_stage`.
    """
    check_server()
    _tag(config)
    request = request_for(config, store, draws)
    planned = plan_request(request, last)
    get_run_logger().info(plan_in_words(planned))
    refuse(planned)
    _check_there(planned, before=first)
    if dry_run:
        return Completed(name="Planned", message=plan_in_words(planned))
    _check_device(config, planned)
    stop = StopRequest()
    inherited = STOP.set(stop)
    futures: Futures = {}
    try:
        for stage in stages_until(last, config):
            if stage.charge and approval_is_required():
                refused = _await_approval(config, store, draws, stage, last)
                if refused:
                    return refused
            inputs = {name: futures[name] for name in stage.inputs}
            futures[stage.name] = STAGE_TASKS[stage.name].submit(request, inputs)
            _wait_for(futures[stage.name], stop)
            if stage.name == "admit" and "public" in futures:
                public, admit = (
                    cast(Any, futures["public"]),
                    cast(Any, futures["admit"]),
                )  # Prefect puts in their results
                _wait_for(check.submit(request, public, admit, last), stop)
                if any(row.epsilon is None for row in planned.stages):
                    plan_request(request, last)  # once more: now its epsilons are known
    finally:
        STOP.reset(inherited)
    return {stage: future.result()["key"] for stage, future in futures.items()}


def _tag(config: RunConfig) -> None:
    """Name data set and epsilon: a deployment's tags are those of its file, and the form may have changed them."""
    kept = [tag for tag in flow_run.tags if not tag.startswith(("dataset:", "eps:"))]
    tags = [*kept, f"dataset:{config.name}", f"eps:{config.privacy.epsilon:g}"]
    if set(tags) != set(flow_run.tags):
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), tags=tags)


def _wait_for(future: PrefectFuture[Any], stop: StopRequest) -> None:
    """Wait for a task. A signal first asks its stage to stop, which may save a checkpoint; once more, and it is left."""
    try:
        future.result()
    except (TerminationSignal, KeyboardInterrupt):
        stop.ask()
        get_run_logger().info("Asked to stop: the running stage ends at its next step; another run goes on from there.")
        future.wait()
        raise


def _check_there(planned: RunPlan, before: str) -> None:
    names = [row.stage for row in planned.stages]
    if before not in names:
        raise InputError(f"start_at is {before}, which is not among the stages up to {names[-1]}: {', '.join(names)}.")
    missing = [row.stage for row in planned.stages[: names.index(before)] if row.action != "reused"]
    if missing:
        raise InputError(
            f"start_at is {before}, but {', '.join(missing)} of this configuration is not in the store: start at "
            f"{missing[0]} or before."
        )


def _check_device(config: RunConfig, planned: RunPlan) -> None:
    """Fail now, not after hours, on a machine that lacks the device; torch is loaded only if something is to be computed."""
    if any(row.stage in COMPUTING and row.action != "reused" for row in planned.stages):
        from privimage.machine.device import choose_device

        choose_device(config.performance.device)


def _await_approval(
    config: RunConfig, store: str, draws: Mapping[str, int], stage: Stage, last: str | None
) -> State[Any] | None:
    """Ask the data steward, if `stage` would be the first to take something from the grant; the state of a refusal."""
    planned = plan_run(Run(config=config, store=Store.open(store, known=True), draws=draws), last)
    # Not by its epsilon: that of much noise is 0, and yet the first charge sets all of the run's aside.
    reused = {row.stage for row in planned.stages if row.action == "reused"}
    if stage.name in reused or not planned.share_asked:
        return None
    answer = ask_for_approval(config, planned, stage.name)
    if answer.approve:
        get_run_logger().info("Approved: %s", answer.reason or "no reason given")
        return None
    return Cancelled(name="Refused", message=f"Not approved, nothing was spent: {answer.reason or 'no reason given'}")
