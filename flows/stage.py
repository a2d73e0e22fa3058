"""One stage of a run, again: after another look at its settings, or as another draw."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.forms import DEFAULT_STORE_URL, StageName, StoreUrl
from flows.pipeline import ONE_AT_A_TIME, Keys, run_stages
from privimage.config.run import RunConfig

__all__ = ["stage"]


@flow(
    name="stage",
    flow_run_name="{config.name}-eps{config.privacy.epsilon:g}-{stage}",
    task_runner=ONE_AT_A_TIME,
    persist_result=False,
)
def stage(
    *,
    stage: StageName,
    draw: Annotated[int, Field(ge=1, le=1_000_000)] = 1,
    dry_run: bool = False,
    store: StoreUrl = DEFAULT_STORE_URL,
    config: RunConfig,
) -> Keys | State[Any]:
    """Run one stage of a run whose earlier stages are there; it is reused if it was made with these settings.

    Args:
        stage: The stage to run.
        draw: 1 is the run that is made at first; another number asks for another, independent one, and a private stage
            is then charged again.
        dry_run: Only show the plan.
        store: Root URL of the object store: a path, file:///path or s3://bucket/prefix.
        config: Data, privacy and settings of every stage.

    Returns:
        Keys of the artifacts, by stage.
    """
    return run_stages(config, store, {stage: draw}, first=stage, last=stage, dry_run=dry_run)
