"""Does a test notice each seeded privacy bug? `python -m tests.privacy.mutants [--quiet] [--in FOLDER] [WORDS ...]`

Two copies of the code are made in a temporary folder. In each, one bug at a time is put in, the one test that is named
for it is run, and the file is restored. A bug counts as killed only if that very test fails: not if it cannot be
collected, and not if the changed code is merely broken. Last line: {"mutants", "killed", "seconds"} as JSON; exit code 1
if a bug survives. `--quiet` tells of those only that do. `--in` takes bugs of one folder of the code; WORDS, those with
one of them in their names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.privacy.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[3]
COPIED = ("privimage", "tasks", "flows", "tests", "deployments", "benchmarks", "pyproject.toml")
AT_ONCE = 2
# A test that fails with one of these met code that does not run, not a bug.
BROKEN = ("NameError", "UnboundLocalError", "SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError")


class Copy:
    """A copy of the code, and the worker that runs tests in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif source.exists():
                shutil.copy(source, folder / name)
        settings = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a bug put in within the same second would meet the old bytecode
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
        }
        command = [sys.executable, "-m", "tests.privacy.mutants.worker"]
        self._worker = subprocess.Popen(
            command, cwd=folder, env=settings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._worker.stdout is not None
        return self._worker.stdout.readline().strip()

    def run(self, tests: list[str]) -> dict[str, Any]:
        """Exit code and output of pytest."""
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(tests) + "\n")
        self._worker.stdin.flush()
        return dict(json.loads(self._answer()))

    def try_mutant(self, mutant: Mutant) -> str:
        """'killed' and why the test failed, or what happened instead."""
        file = self.folder / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"SURVIVED: its place occurs {text.count(mutant.old)} times in {mutant.file}, expected once"
        file.write_text(text.replace(mutant.old, mutant.new))
        try:
            ran = self.run([mutant.test])
        finally:
            file.write_text(text)
        failed = re.search(rf"^FAILED tests/{re.escape(mutant.test)}(?:\[.*?\])?(?: - (.*))?$", ran["output"], re.M)
        if ran["code"] != 1 or failed is None:
            return f"SURVIVED: pytest ended with {ran['code']}: {' | '.join(ran['output'].strip().splitlines()[-3:])}"
        reason = failed[1] or ""
        return (
            f"SURVIVED: the changed code is broken: {reason}" if reason.startswith(BROKEN) else f"killed: {reason:.90}"
        )

    def close(self) -> None:
        self._worker.communicate()


def main(arguments: list[str]) -> int:
    """Exit code 0 if every bug that was asked for was killed."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.privacy.mutants")
    parser.add_argument("--quiet", action="store_true", help="tell only of bugs that survive")
    parser.add_argument(
        "--in", dest="folder", default="", metavar="FOLDER", help="only bugs in this folder of the code"
    )
    parser.add_argument("words", nargs="*", help="only bugs with one of these in their names")
    options = parser.parse_args(arguments)
    quiet, words = options.quiet, options.words
    chosen = [
        mutant
        for mutant in MUTANTS
        if mutant.file.startswith(options.folder) and (not words or any(word in mutant.name for word in words))
    ]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as threads:
        free: SimpleQueue[Copy] = SimpleQueue()
        copies = list(threads.map(lambda number: Copy(Path(folder) / str(number)), range(AT_ONCE)))
        for copy in copies:
            stack.callback(copy.close)
            free.put(copy)
        tests = sorted({mutant.test for mutant in chosen})
        shares = [
            share
            for n in range(AT_ONCE)
            if (share := tests[n * len(tests) // AT_ONCE : (n + 1) * len(tests) // AT_ONCE])
        ]
        for ran in threads.map(lambda pair: pair[0].run(pair[1]), zip(copies, shares, strict=False)):
            if ran["code"] != 0:
                print(f"{ran['output']}\nThe tests fail without any bug: nothing to be learnt.")
                return 2
        print(f"{len(tests)} tests pass without a bug, {time.monotonic() - started:.0f} s", flush=True)

        def attempt(mutant: Mutant) -> bool:
            copy, begun = free.get(), time.monotonic()
            try:
                outcome = copy.try_mutant(mutant)
            finally:
                free.put(copy)
            found = outcome.startswith("killed")
            if not (found and quiet):
                print(f"{time.monotonic() - begun:5.1f} s  {mutant.name}: {outcome}", flush=True)
            return found

        killed = sum(threads.map(attempt, chosen))
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"mutants": len(chosen), "killed": killed, "seconds": seconds}))
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
