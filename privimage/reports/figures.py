"""By which right something is shown: the wall between the private side and what may leave.

Everything that a report shows is a figure or a section of figures, tables and pictures, and names its kind:
`public`: computed without sensitive images, or from what was released. `charged`: released by a mechanism that the
ledger holds. `internal`: computed from sensitive images without a charge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from privimage.errors import PrivacyRefused, Uncharged

__all__ = ["INTERNAL", "Figure", "Kind", "Shown", "check_kind", "check_releasable"]

Kind = Literal["public", "charged", "internal"]

INTERNAL = "Internal: computed from sensitive images without a privacy charge; must not leave the private side"


class Shown(Protocol):
    """Anything that a report shows and that has a kind."""

    @property
    def name(self) -> str:
        """What a refusal calls it; it tells no value."""

    @property
    def kind(self) -> Kind:
        """By which right it is shown."""

    @property
    def paid_by(self) -> tuple[str, ...]:
        """The ledger entries of what is charged; nothing else has any."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A named result.

    Attributes:
        paid_by: the ledger entries of a charged figure; it has some, and no other figure has any.
        of_class: the class that it is about; None = all.
    """

    name: str
    value: str
    note: str
    kind: Kind
    paid_by: tuple[str, ...] = ()
    of_class: str | None = None

    def __post_init__(self) -> None:
        check_kind("figure", self)


def check_kind(what: str, shown: Shown) -> None:
    """Raise Uncharged where something charged names no ledger entry, or something else names one."""
    if (shown.kind == "charged") != bool(shown.paid_by):
        raise Uncharged(
            f"The {what} {shown.name!r} is {shown.kind} and names {len(shown.paid_by)} ledger entries; a charged {what} "
            "names those that paid for it, and no other names any."
        )


def check_releasable(items: Iterable[Shown], paid: Collection[str]) -> None:
    """Refuse what may not leave; the messages name figures and sections, and no values.

    Args:
        paid: the ledger entries that paid for the release.

    Raises:
        PrivacyRefused: one of them is internal.
        Uncharged: one that is charged names an entry that did not pay for this release.
    """
    items = list(items)
    internal = sorted({item.name for item in items if item.kind == "internal"})
    if internal:
        raise PrivacyRefused(
            f"A release cannot carry {', '.join(internal)}: computed from sensitive images without a privacy charge; put "
            "them into the internal report."
        )
    unpaid = sorted({item.name for item in items if not set(item.paid_by) <= set(paid)})
    if unpaid:
        raise Uncharged(f"A release cannot carry {', '.join(unpaid)}: no mechanism of this release paid for them.")
