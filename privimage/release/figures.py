"""Figures and by which right each is shown: the wall between the private side and what may leave."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from privimage.errors import PrivacyRefused, Uncharged

__all__ = ["INTERNAL", "Figure", "check_releasable"]

INTERNAL = "Internal: computed from sensitive images without a privacy charge; must not leave the private side"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A named result.

    Attributes:
        kind: `public`: computed without sensitive images, or from what was released. `charged`: released by a mechanism
            that the ledger holds. `internal`: computed from sensitive images without a charge.
        paid_by: the ledger entries of a charged figure; it has some, and no other figure has any.
        of_class: the class that it is about; None = all.
    """

    name: str
    value: str
    note: str
    kind: Literal["public", "charged", "internal"]
    paid_by: tuple[str, ...] = ()
    of_class: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "charged") != bool(self.paid_by):
            raise Uncharged(
                f"The figure {self.name!r} is {self.kind} and names {len(self.paid_by)} ledger entries; a charged figure "
                "names those that paid for it, and no other names any."
            )


def check_releasable(figures: Iterable[Figure], paid: Collection[str]) -> None:
    """Refuse figures that may not leave; the messages name figures and no values.

    Args:
        paid: the ledger entries that paid for the release.

    Raises:
        PrivacyRefused: a figure is internal.
        Uncharged: a charged figure names an entry that did not pay for this release.
    """
    figures = list(figures)
    internal = sorted({figure.name for figure in figures if figure.kind == "internal"})
    if internal:
        raise PrivacyRefused(
            f"A release cannot carry {', '.join(internal)}: computed from sensitive images without a privacy charge; put "
            "them into the internal report."
        )
    unpaid = sorted({figure.name for figure in figures if not set(figure.paid_by) <= set(paid)})
    if unpaid:
        raise Uncharged(f"A release cannot carry {', '.join(unpaid)}: no mechanism of this release paid for them.")
