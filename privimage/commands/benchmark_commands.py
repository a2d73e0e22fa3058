"""benchmark: methods side by side on public stand-ins for sensitive data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from privimage.benchmark.suite import Part, Suite, load_suite
from privimage.commands.shared import Commands, print_table
from privimage.errors import ConfigError
from privimage.machine.interrupts import StopRequest, stop_on_signals
from privimage.machine.progress import Terminal
from privimage.running.runner import run_all
from privimage.store.files import Store

__all__ = ["add_suite", "part_of", "register", "suite_of"]

SUITES = Path("benchmarks/suites")
DEFAULT_STORE = ".privimage-benchmarks"


def register(commands: Commands) -> None:
    """Add the command."""
    about = "methods x data sets x epsilons x seeds, in one table; for public stand-ins of sensitive data"
    benchmark = commands.add_parser("benchmark", help=about)
    add_suite(benchmark)
    benchmark.add_argument("--dry-run", action="store_true", help="only show the runs, and how long they will take")
    benchmark.add_argument(
        "--to",
        metavar="DIR",
        help="also write table, plots and certificates there; only if the suite's sets are public",
    )
    benchmark.set_defaults(command=_benchmark)


def add_suite(parser: argparse.ArgumentParser) -> None:
    """SUITE, what to run of it, and --store."""
    parser.add_argument("suite", metavar="SUITE", help=f"YAML file, or the name of one in {SUITES}")
    for name, what in (("methods", "methods"), ("datasets", "data sets"), ("epsilons", "epsilons"), ("seeds", "seeds")):
        parser.add_argument(
            f"--{name}", default="", metavar="A,B", help=f"run only these of the suite's {what}; the table is of all"
        )
    parser.add_argument(
        "--store",
        default=DEFAULT_STORE,
        metavar="URL",
        help=f"store of all runs, not that of real data ({DEFAULT_STORE})",
    )


def suite_of(options: argparse.Namespace) -> Suite:
    """The suite that the options of `add_suite` name."""
    named = Path(options.suite)
    path = named if named.suffix else SUITES / f"{options.suite}.yaml"
    return load_suite(path)


def part_of(options: argparse.Namespace) -> Part:
    """What of the suite the options of `add_suite` ask to run."""
    named = {name: [each for each in getattr(options, name).split(",") if each] for name in Part.model_fields}
    try:
        return Part.model_validate(named)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        raise ConfigError(
            f"--{first['loc'][0]} is {first['input']!r}, expected numbers, with commas between."
        ) from None


def _benchmark(options: argparse.Namespace) -> int:
    from privimage.benchmark.running import check_public, hand_out, results_folder, run_of, run_suite

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
    from privimage.benchmark.running import estimate, prepare

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
