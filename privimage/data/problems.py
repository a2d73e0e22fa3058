"""Why an image cannot be used, what to do about it, and the private list that tells both to the data's owner."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Self

from privimage.errors import DataError

__all__ = ["REPAIR", "Problem", "UnusableImage", "printable", "private_list"]

REPAIR = "Get the file anew from where it comes from, or remove it."
_OTHER = "Look at the classes, their splits, and the source as a whole."


class UnusableImage(DataError):
    """One image cannot be used; the message is the reason, without the file's name, and `cure` what to do.

    The cure is the same for all images of a kind, so that a list can be grouped by it.
    """

    def __init__(self, reason: str, cure: str = REPAIR) -> None:
        super().__init__(reason)
        self.cure = cure


class Problem(str):
    """One line of the private list, and what to do about all lines of its kind."""

    cure: str

    def __new__(cls, line: str, cure: str) -> Self:
        problem = super().__new__(cls, line)
        problem.cure = cure
        return problem


def printable(text: str) -> str:
    """The text with what has no place in a line of UTF-8 written as escapes: bytes of other encodings, control codes.

    File names may hold all of these. A line feed in one would make a second line of the private list, and a byte that is
    no UTF-8 would end the run that wants to write it down.
    """
    return "".join(
        character.encode("unicode_escape").decode() if _is_unprintable(character) else character for character in text
    )


def private_list(problems: Iterable[str]) -> str:
    """The text of the private list: kinds of problems in the order they were met, each with its cure, then its lines."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        cure = problem.cure if isinstance(problem, Problem) else _OTHER
        kinds.setdefault(cure, []).append(printable(problem))
    return "\n".join(
        f"{cure} ({len(lines)} found)\n" + "".join(f"  {line}\n" for line in lines) for cure, lines in kinds.items()
    )


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
