"""Methods side by side on public stand-ins for sensitive data, started in the repository's root.

    python -m benchmarks cpu-small

Exit codes as for `privimage`: 0 fine, 1 failed, 2 usage or bad input, 3 refused for privacy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.options import add_suite, part_of, suite_of
from benchmarks.harness.suite import Part, Suite
from privimage.commands.shared import exit_code, print_table
from privimage.machine.interrupts import StopRequest, stop_on_signals
from privimage.machine.progress import Terminal
from privimage.machine.readers import go_on_without_readers
from privimage.running.runner import run_all
from privimage.store.files import Store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a suite, or show what it would run; errors become one line on stderr and an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Methods x data sets x epsilons x seeds, in one table; for public stand-ins of sensitive data.",
    )
    add_suite(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show the runs, and how long they will take")
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="also write table, plots and certificates there; only if the suite's sets are public",
    )
    options = parser.parse_args(arguments)
    go_on_without_readers()
    return exit_code(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    from benchmarks.harness.running import check_public, hand_out, results_folder, run_of, run_suite

    suite, part = suite_of(options), part_of(options)
    store, stop, progress = Store.open(options.store, wait=not options.dry_run), StopRequest(), Terminal()
    if options.to:
        check_public(suite)
    if options.dry_run:
        return _plan(suite, part, store)
    with stop_on_signals(stop):
        rows = run_suite(
            suite,
            store,
            lambda cell: run_all(run_of(cell, store, progress, stop)),
            part=part,
            progress=progress,
            note=lambda text: print(text, file=sys.stderr, flush=True),
        )
    folder = results_folder(suite)
    print(f"table (private): {store.local_path(folder) or f'{store.url}/{folder}'}/table.md")
    if options.to:
        hand_out(suite, rows, store, Path(options.to))
        print(f"handed out: {options.to}/table.md")
    return 1 if any(row.status == "failed" for row in rows) else 0


def _plan(suite: Suite, part: Part, store: Store) -> int:
    from benchmarks.harness.running import estimate, prepare

    prepared = prepare(suite, store, part=part, dry=True)
    shown = estimate(suite, prepared.cells, store)
    print_table(
        ["data set", "method", "epsilon", "seed", "state", "minutes"],
        [
            [
                each.cell.dataset,
                each.cell.method,
                f"{each.cell.epsilon:g}",
                str(each.cell.seed),
                "done" if each.done else "to run",
                "-" if each.done else "?" if each.seconds is None else f"{each.seconds / 60:.1f}",
            ]
            for each in shown
        ],
    )
    for dataset, why in prepared.skipped.items():
        print(f"{dataset} would be skipped: {why}")
    ahead = [each for each in shown if not each.done]
    unknown = sum(each.seconds is None for each in ahead)
    hours = sum(each.seconds or 0 for each in ahead) / 3600
    print(
        f"\n{len(ahead)} of {len(shown)} runs are to be made, in about {hours:.1f} hours"
        + (f", and {unknown} of unknown length" if unknown else "")
        + f"; a grant of epsilon {suite.budget:g} for each data set."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
