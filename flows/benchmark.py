"""A suite of runs as one flow: methods x data sets x epsilons x seeds, each a run of `synthesize`, and one table.

    python -m flows.benchmark cpu-small

The same runs, store and table as `python -m benchmarks`: what either has made, the other reuses.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from benchmarks.harness.options import add_suite, part_of, suite_of
from benchmarks.harness.running import WHOLE, prepare, results_folder, run_suite
from benchmarks.harness.suite import Cell, Part, Suite
from flows.forms import Redo, StoreUrl
from flows.server import check_answers, check_server
from flows.synthesize import synthesize
from privimage.commands.shared import exit_code
from privimage.errors import PrivimageError
from privimage.store.files import Store

__all__ = ["benchmark", "main"]


@flow(name="benchmark", flow_run_name="{suite.name}", persist_result=False)
def benchmark(*, suite: Suite, store: StoreUrl, part: Part = WHOLE, dry_run: bool = False) -> State[Any]:
    """Run what is missing of a suite, one run after the other, and write its table.

    Prefect shows which runs there are, and none of their figures: the table is private.

    Args:
        suite: Methods, data sets, epsilons and seeds.
        store: Root URL of the store of all runs, which is not that of real data.
        part: What to run of it; the table is of the whole suite.
        dry_run: Only see whether the budget holds all runs.
    """
    check_server()
    opened = Store.open(store, wait=True)
    if dry_run:
        prepared = prepare(suite, opened, part=part, dry=True)
        return Completed(
            name="Planned", message=f"{len(prepared.cells)} runs; skipped: {dict(prepared.skipped) or 'none'}"
        )

    def execute(cell: Cell) -> None:
        redo = [Redo.model_validate({"stage": stage, "draw": draw}) for stage, draw in cell.draws.items()]
        synthesize(config=cell.config, store=store, redo=redo)

    rows = run_suite(suite, opened, execute, part=part, note=get_run_logger().info)
    done = sum(row.status == "done" for row in rows)
    failed = [
        f"{row.dataset}, {row.method}, epsilon {row.epsilon:g}, seed {row.seed}"
        for row in rows
        if row.status == "failed"
    ]
    if failed:
        raise PrivimageError(
            f"{len(failed)} of {len(rows)} runs failed, the first of them {failed[0]}; run again to try them."
        )
    return Completed(
        message=f"{done} of {len(rows)} runs are there; the table is in {results_folder(suite)} of the store."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the flow for one suite; exit codes as for `privimage`."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.benchmark", description="A benchmark suite, as a Prefect flow."
    )
    add_suite(parser)
    parser.add_argument("--dry-run", action="store_true", help="only see whether the budget holds all runs")
    options = parser.parse_args(arguments)

    def run_flow() -> int:
        check_answers()
        benchmark(suite=suite_of(options), store=options.store, part=part_of(options), dry_run=options.dry_run)
        return 0

    return exit_code(run_flow)


if __name__ == "__main__":
    sys.exit(main())
