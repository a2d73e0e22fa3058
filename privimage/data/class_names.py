"""Which names of classes can be published: they stand in releases, certificates and reports, and name folders."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from privimage.errors import DataError

__all__ = ["check_class_names", "composed"]

# Invisible, but part of the spelling of some languages.
_JOINERS = ("\u200c", "\u200d")


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC): macOS decomposes the names of files that others compose."""
    return unicodedata.normalize("NFC", name)


def check_class_names(origin: str, names: Sequence[str]) -> None:
    """Refuse names that cannot be published as they are, before anything is computed or charged for them.

    Class names are public, so the message may show them. Names that differ in case only are left alone: some alphabets
    are classes of letters, and exports number the folders of such classes.

    Raises:
        DataError: a name is empty, begins or ends with a blank, holds control characters or invisible ones, or is no
            Unicode text; or two names look the same, be it in two Unicode forms.
    """
    for name in names:
        if problem := _problem(name):
            raise DataError(f"{origin} has a class whose name {problem} ({name!a}): rename that class.")
    for spelling, times in Counter(map(_spelling, names)).items():
        if times > 1:
            raise DataError(
                f"{origin} has two classes of the same name, maybe in two Unicode forms ({spelling!a}): rename one of "
                "them, or make them one."
            )


def _problem(name: str) -> str | None:
    if not name.strip():
        return "is empty or blank"
    if any(unicodedata.category(character) == "Cs" for character in name):
        return "is not UTF-8"
    if name != name.strip():
        return "begins or ends with a blank"
    if any(_is_hidden(character) for character in name):
        return "holds characters that control the text or cannot be seen"
    return None


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in _JOINERS


def _spelling(name: str) -> str:
    """What two names that people cannot tell apart have in common."""
    return composed("".join(character for character in name if character not in _JOINERS))
