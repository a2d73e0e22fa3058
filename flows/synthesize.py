"""From public and sensitive images to a differentially private release: the whole method as one flow.

    python -m flows.synthesize deployments/datasets/demo.yaml

The same stages, store and keys as `privimage run`: what either has made, the other reuses.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.forms import (
    DEFAULT_STORE_URL,
    EARLIEST,
    LATEST,
    Redo,
    StageName,
    StoreUrl,
    draws_of,
)
from flows.pipeline import ONE_AT_A_TIME, Keys, run_stages
from flows.server import check_answers
from privimage.commands.shared import add_config, exit_code, open_run
from privimage.config.run import RunConfig
from privimage.pipeline.table import STAGES

__all__ = ["main", "synthesize"]


@flow(
    name="synthesize",
    flow_run_name="{config.name}-eps{config.privacy.epsilon:g}",
    task_runner=ONE_AT_A_TIME,
    persist_result=False,
)
def synthesize(
    *,
    dry_run: bool = False,
    start_at: StageName = EARLIEST,
    stop_after: StageName = LATEST,
    redo: list[Redo] = [],  # noqa: B006 (Prefect shows it in the form; nobody changes it)
    store: StoreUrl = DEFAULT_STORE_URL,
    config: RunConfig,
) -> Keys | State[Any]:
    """Make a synthetic, differentially private image set from a sensitive one.

    Finished stages are reused, an interrupted one goes on from its checkpoint; the privacy cost is charged to the
    ledger of the sensitive set, whose owner has to have granted it (`privimage ledger grant`).

    Args:
        dry_run: Only show the plan: what would be reused, run and charged.
        start_at: Stages before this one are only reused; the run fails at once if one of them is not there.
        stop_after: Run no stage that is not needed for this one; `release` runs all.
        redo: Stages of which another, independent run is wanted; a private stage is charged again.
        store: Root URL of the object store: a path, file:///path or s3://bucket/prefix.
        config: Data, privacy and settings of every stage; filled in from the data set's file, changed here for this run.

    Returns:
        Keys of the artifacts, by stage.
    """
    last = None if stop_after == STAGES[-1].name else stop_after
    return run_stages(config, store, draws_of(redo), first=start_at, last=last, dry_run=dry_run)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow for one configuration; exit codes as for `privimage`."""
    about = "Make a differentially private synthetic image set, as a Prefect flow; the same stages as `privimage run`."
    parser = argparse.ArgumentParser(prog="python -m flows.synthesize", description=about)
    add_config(parser)
    names = [stage.name for stage in STAGES]
    parser.add_argument(
        "--start-at", choices=names, default=EARLIEST, metavar="STAGE", help="earlier ones must be there"
    )
    parser.add_argument("--stop-after", choices=names, default=LATEST, metavar="STAGE", help="stop after this stage")
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")
    options = parser.parse_args(arguments)

    def run_flow() -> int:
        check_answers()
        run = open_run(options, wait=True)
        redo = [Redo.model_validate({"stage": stage, "draw": draw}) for stage, draw in run.draws.items()]
        keys = synthesize(
            config=run.config,
            store=options.store,
            redo=redo,
            dry_run=options.dry_run,
            start_at=options.start_at,
            stop_after=options.stop_after,
        )
        if isinstance(keys, dict) and "release" in keys:
            print(f"release: {run.store.url}/releases/{run.config.name}-{keys['release'][:8]}")
        return 0

    return exit_code(run_flow)


if __name__ == "__main__":
    sys.exit(main())
