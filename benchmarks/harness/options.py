"""What the command and the flow both ask of whoever starts a suite: which suite, which part of it, and which store."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from benchmarks.harness.suite import Part, Suite, load_suite
from privimage.errors import ConfigError

__all__ = ["add_suite", "part_of", "suite_of"]

SUITES = Path("benchmarks/suites")
DEFAULT_STORE = ".privimage-benchmarks"


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
    """The suite that the options of `add_suite` name; ConfigError as for `load_suite`."""
    named = Path(options.suite)
    path = named if named.suffix else SUITES / f"{options.suite}.yaml"
    return load_suite(path)


def part_of(options: argparse.Namespace) -> Part:
    """What of the suite the options of `add_suite` ask to run; ConfigError if a number is none."""
    named = {name: [each for each in getattr(options, name).split(",") if each] for name in Part.model_fields}
    try:
        return Part.model_validate(named)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        raise ConfigError(
            f"--{first['loc'][0]} is {first['input']!r}, expected numbers, with commas between."
        ) from None
