"""Which code made something: a version for people, a digest for everybody else."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import privimage

__all__ = ["code_digest"]


@cache
def code_digest(package: Path = Path(privimage.__file__).parent) -> str:
    """SHA-256 over the Python source files of the package, as they lie on the disk when this is first asked.

    Covers each file's path within the package (with `/`) and its bytes, in the order of the paths: a changed, renamed,
    added or missing file changes it, line endings included. Does not cover Python, other packages (their versions are
    listed apart), the configuration, or code of the repository outside of the package (`tasks`, `flows`).
    """
    whole = hashlib.sha256()
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    for name in sorted(files):
        whole.update(f"{hashlib.sha256(files[name].read_bytes()).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()
