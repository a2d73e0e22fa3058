"""Folders and files that tell the part of a data set, not the class: `train` and `test`, folds, `label=cat`."""

from __future__ import annotations

import re

from privimage.data.listing import Listing
from privimage.errors import DataError

__all__ = ["check_structure", "only_split", "split_word", "unwrapped"]

_WORDS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "test": "test",
    "testing": "test",
    "testset": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "valset": "validation",
    "dev": "validation",
}
_FILLERS = frozenset({"set", "data", "images", "imgs", "split"})
_FOLD = re.compile(r"(fold|split|part)[ _-]?\d+", re.IGNORECASE)
_HIVE = re.compile(r"[^=]+=.*")


def split_word(name: str) -> str | None:
    """The split that a name means: `train`, `validation` or `test`, for `Training_set` or `val`; None for other names."""
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word and word not in _FILLERS]
    return _WORDS.get(words[0]) if len(words) == 1 else None


def unwrapped(listing: Listing) -> Listing:
    """Step into the only folder at the top, where that holds folders: zipping a folder adds this level."""
    tops = listing.tops()
    if len(tops) != 1 or not listing.below(top := tops.pop()) or split_word(top):
        return listing
    # What lies beside that folder stays at the top, where it is no image of a class.
    return listing.moved(lambda path: path.removeprefix(f"{top}/") if path != top else None)


def only_split(origin: str, listing: Listing, split: str) -> Listing:
    """What lies in the folder `split`, which is either at the top or in every folder at the top.

    Raises:
        DataError: no such folder.
    """
    tops = listing.tops()
    if split in tops:
        return listing.moved(lambda path: path.removeprefix(f"{split}/") if path.startswith(f"{split}/") else None)
    if not tops or not all(split in listing.below(top) for top in tops):
        raise DataError(f"{origin} has no folder {split!r}, neither at the top nor in every class: correct `split`.")

    def without(path: str) -> str | None:
        parts = path.split("/")
        if len(parts) == 1:
            return path
        return "/".join([parts[0], *parts[2:]]) if parts[1] == split else None

    return listing.moved(without)


def check_structure(origin: str, listing: Listing) -> None:
    """Refuse folders that would be read as classes but name something else; only their names are looked at.

    Raises:
        DataError: class folders that look like splits, folds or partitions, or splits inside of the classes.
    """
    tops = listing.tops()
    splits = sorted(top for top in tops if split_word(top))
    twice = [top for top in splits if listing.below(top) & (tops - {top})]
    alone = [top for top in splits if len(tops) == 1 and listing.below(top)]
    if len(splits) > 1 or twice or alone:
        raise DataError(
            f"{origin} holds {_named(splits)}, which looks like a part of the set and not like a class: name one part in the source's "
            "`split`, once for sensitive.train and once for sensitive.test. Rename the folders if they are classes."
        )
    inside = {word for top in tops for folder in listing.below(top) if (word := split_word(folder))}
    if len(inside) > 1:
        raise DataError(
            f"{origin} has classes that are divided into {_named(sorted(inside))}: name one part in the source's `split`, once for "
            "sensitive.train and once for sensitive.test."
        )
    if len(tops) > 1 and all(_FOLD.fullmatch(top) for top in tops):
        raise DataError(f"{origin} holds folds ({_named(sorted(tops))}), not classes: name one of them in `split`.")
    if tops and all(_HIVE.fullmatch(top) for top in tops):
        raise DataError(
            f"{origin} holds partitions ({_named(sorted(tops))}), not classes: name the folders by the class alone."
        )


def _named(names: list[str]) -> str:
    shown = [ascii(name)[1:-1] for name in names[:3]]
    if len(names) > 3:
        return f"{', '.join(shown)} and more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
