"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from privimage.config.loading import load_config
from privimage.errors import ConfigError, PrivimageError
from privimage.machine.progress import Terminal
from privimage.running.runs import Run
from privimage.store.files import Store

__all__ = [
    "DEFAULT_STORE",
    "Commands",
    "add_config",
    "add_json",
    "add_store",
    "exit_code",
    "open_run",
    "print_json",
    "print_table",
]

DEFAULT_STORE = ".privimage"

Commands = Any  # argparse's sub-parser collection is private


def add_store(parser: argparse.ArgumentParser) -> None:
    """--store URL."""
    parser.add_argument(
        "--store",
        default=os.environ.get("PRIVIMAGE_STORE", DEFAULT_STORE),
        metavar="URL",
        help="root of the store: a path, file:///path, memory://name or s3://bucket/prefix (default: $PRIVIMAGE_STORE or .privimage)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG, --set, --store, --draw."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run, such as deployments/datasets/demo.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one setting; may be repeated"
    )
    parser.add_argument(
        "--draw",
        action="append",
        default=[],
        metavar="STAGE=N",
        help="ask for another, independent run of a stage (of a private stage: charged again); may be repeated",
    )
    add_store(parser)


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; an error becomes one line on stderr and the exit code that its class stands for."""
    try:
        return command()
    except PrivimageError as error:
        print(f"privimage: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("privimage: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 1


def open_run(options: argparse.Namespace, *, wait: bool = False) -> Run:
    """The run that the options of `add_config` describe; to `wait` for a store's server as `Store.open` does."""
    from privimage.pipeline.table import stage_named

    config = load_config(options.config, options.set)
    draws = {}
    for text in options.draw:
        name, _, number = text.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(f"--draw {text!r}: expected STAGE=N with N of 1 or more, such as finetune=2")
        draws[stage_named(name).name] = int(number)
    return Run(config=config, store=Store.open(options.store, wait=wait), progress=Terminal(), draws=draws)


def print_json(value: Any) -> None:
    """Indented JSON on stdout."""
    print(json.dumps(value, indent=1))


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], align: Callable[[int], str] = lambda column: "<"
) -> None:
    """Columns padded to their widest cell; `align(column)` is '<' or '>'."""
    table = [list(headings), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        print("  ".join(f"{cell:{align(number)}{widths[number]}}" for number, cell in enumerate(row)).rstrip())
