"""One step of a verification: what was looked at, how it came out, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SAME_EPSILON", "Check", "checked"]

SAME_EPSILON = 1e-4
"""Other versions of an accountant may round otherwise, relatively by so much; figures that were made up differ by more."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One step: what was looked at, how it came out, and why."""

    step: str
    outcome: Literal["passed", "failed", "skipped"]
    why: str


def checked(step: str, ok: bool, good: str, bad: str) -> Check:
    """Passed, and why it is good, or failed, and why it is bad."""
    return Check(step=step, outcome="passed" if ok else "failed", why=good if ok else bad)
