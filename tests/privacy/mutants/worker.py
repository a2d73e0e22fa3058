"""Runs named tests in one copy of the code; `__main__` starts one worker a copy.

Libraries that no mutant changes are loaded once; each run is a process forked from there, which imports the copy's
`privimage` and tests anew. Reads a JSON list of tests a line, answers {"code", "output"} a line.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

LIBRARIES = (
    "torch",
    "torch.func",
    "torchvision.transforms.v2",
    "opacus.validators",
    "opacus.accountants",
    "moto.server",
    "moto.s3",
    "dp_accounting",
    "dp_accounting.pld",
    "dp_accounting.rdp",
    "opendp.prelude",
    "pyarrow.parquet",
    "s3fs",
    "scipy.optimize",
    "scipy.stats",
    "matplotlib.figure",
    "pydantic.main",
    "pydantic.networks",
    "pydantic.types",
    "cryptography.hazmat.primitives.ciphers",
    "hypothesis.strategies",
    "hypothesis.internal.conjecture.engine",
    "anyio._backends._asyncio",
    "safetensors.torch",
    "sklearn.datasets",
)
# Loaded before pytest could rewrite its asserts: of no concern, but a warning, and warnings are errors here.
LOADED_BEFORE = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
# Looks for errors in finalisers, for which it collects garbage ten times as it ends.
NO_GARBAGE = ("-p", "no:unraisableexception")
# A bug is killed always, or never: what examples hypothesis draws is the same each time.
OPTIONS = (
    "-x",
    "-q",
    "--hypothesis-seed=0",
    "-rfE",
    "-p",
    "no:cacheprovider",
    "--timeout=120",
    *NO_GARBAGE,
    *LOADED_BEFORE,
)


def main() -> None:
    """Serve until standard input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = 91
                try:
                    code = _run(json.loads(line))
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            print(json.dumps({"code": code, "output": output.read()}), flush=True)


def _run(tests: list[str]) -> int:
    here = Path.cwd().resolve()
    code = int(pytest.main([*OPTIONS, *(f"tests/{test}" for test in tests)]))
    sys.stdout.flush()
    loaded = {name: Path(str(sys.modules[name].__file__)).resolve() for name in sys.modules if name == "privimage"}
    if not all(file.is_relative_to(here) for file in loaded.values()) or not loaded:
        print(f"privimage was not imported from {here}: {loaded}", flush=True)
        return 90
    return code


if __name__ == "__main__":
    main()
    os._exit(0)  # some library complains of its own leaks where a process ends in order
