"""The command line: the same stages as the Prefect flows, without Prefect.

Exit codes: 0 fine, 1 failed, 2 usage or bad input, 3 refused for privacy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from privimage import __version__
from privimage.commands import (
    audit_commands,
    inspect_commands,
    ledger_commands,
    release_commands,
    run_commands,
)
from privimage.commands.shared import exit_code
from privimage.machine.readers import go_on_without_readers

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors become one line on stderr and an exit code."""
    options = build_parser().parse_args(arguments)
    go_on_without_readers()
    return exit_code(lambda: int(options.command(options)))


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(
        prog="privimage", description="Differentially private synthetic images from a sensitive labelled image set."
    )
    parser.add_argument("--version", action="version", version=f"privimage {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_commands.register(commands)
    ledger_commands.register(commands)
    release_commands.register(commands)
    audit_commands.register(commands)
    inspect_commands.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
