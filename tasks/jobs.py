"""Parts of a stage on a task runner of Prefect: threads, or a Dask or Ray cluster; each part is a task of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import Any

from prefect import task
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from privimage.config.performance import Performance
from privimage.errors import ConfigError
from privimage.machine.progress import Progress, Silent
from privimage.running.jobs import Job, MapJobs, make_part
from tasks.policies import SMALL

__all__ = ["map_on"]

PROGRESS: ContextVar[Progress | None] = ContextVar("PROGRESS", default=None)
"""How a part tells how far it is, and learns that it is to stop; a thread of this process inherits it, a cluster does not."""


def _make(job: dict[str, Any]) -> None:
    make_part(Job(**job), PROGRESS.get() or Silent())


@task(name="part", task_run_name="{job[stage]}-part-{job[first]}", **SMALL)
def part(job: dict[str, Any]) -> None:
    """Make one part of a public stage and keep it in the store."""
    _make(job)  # a function of its own, because a task is sent to a cluster with all that it names


def map_on(performance: Performance) -> MapJobs:
    """Makes parts as tasks on the configured runner; one that fails fails the stage, and the others are given up.

    Raises:
        ConfigError: the runner's package is not installed; when it is used, that no cluster reaches the store.
    """
    new_runner = _runner(performance)

    def mapped(jobs: Sequence[Job], progress: Progress) -> Generator[None, None, None]:
        if not jobs:
            return
        runner = new_runner()
        if isinstance(runner, ThreadPoolTaskRunner):
            inherited = PROGRESS.set(progress)
            try:
                yield from _run(runner, jobs)
            finally:
                PROGRESS.reset(inherited)
            return
        if jobs[0].store.startswith("memory://"):
            raise ConfigError(f"The store {jobs[0].store} lies in this process's memory, which no cluster can reach.")
        yield from progress.track(_run(runner, jobs), f"{jobs[0].stage} (parts)", len(jobs))

    return mapped


def _run(runner: TaskRunner[Any], jobs: Sequence[Job]) -> Generator[None, None, None]:
    with runner:  # what waits when this is left is never started
        futures: list[PrefectFuture[Any]] = [runner.submit(part, {"job": job.to_json()}) for job in jobs]
        for future in futures:
            future.result()
            yield


def _runner(performance: Performance) -> Callable[[], TaskRunner[Any]]:
    """Makes the configured runner."""
    runner, cluster, workers = performance.task_runner, performance.cluster, performance.num_workers
    if runner == "threads":
        return lambda: ThreadPoolTaskRunner(max_workers=1)  # a part uses all of the machine
    try:
        if runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
            on_this_machine = {"cluster_kwargs": {**local, "silence_logs": logging.WARNING}}
            return lambda: DaskTaskRunner(**({"address": cluster} if cluster else on_this_machine))
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError(
            f"performance.task_runner is {runner}, but {error.name} is not installed: pip install prefect-{runner}, on every "
            "machine of the cluster."
        ) from None
    local = {"num_cpus": workers, "include_dashboard": False}
    return lambda: RayTaskRunner(**({"address": cluster} if cluster else {"init_kwargs": local}))
