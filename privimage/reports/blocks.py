"""What a report is made of: titled sections, each of one kind, of blocks: text, tables, figures, plots, pictures.

A block is data, and no HTML; all texts are plain, and are escaped where a block is rendered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from privimage.reports.figures import Figure, Kind, Shown, check_kind

__all__ = ["Block", "Card", "Cards", "Code", "Figures", "Picture", "Pictures", "Plot", "Section", "Table", "Text"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph: plain, `soft` (an aside) or a `warning`."""

    text: str
    tone: Literal["plain", "soft", "warning"] = "plain"


@dataclass(frozen=True, kw_only=True)
class Code:
    """A command, or other text in which every character counts."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a head; the first column names the rows, those in `numbers` stand at the right.

    A cell is text, a number, or `page.Noted`.
    """

    head: Sequence[object]
    rows: Sequence[Sequence[object]]
    numbers: Sequence[int] = ()
    foot: Sequence[object] | None = None
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Named results in a table, each with its kind; those of single classes in a table of classes by figures."""

    figures: Sequence[Figure]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """An <svg> element by `release.pictures`, which has an alternative text; `optional` = left out of a large report."""

    svg: str
    caption: str = ""
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, what it shows in words, and what stands beside it; without a PNG, that alone."""

    png: bytes | None
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures, each in a row beside its caption; of `optional` ones a large report has the captions alone."""

    pictures: Sequence[Picture]
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """Blocks under a small title."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Cards side by side, as many as there is room for: one for each class, one for each plot."""

    cards: Sequence[Card]


Block = Text | Code | Table | Figures | Plot | Pictures | Cards


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of a report.

    Attributes:
        kind: by which right its blocks are shown: the strictest kind of anything in them, figures excepted, which have
            their own.
        paid_by: the ledger entries of a charged section; it has some, and no other section has any.
    """

    title: str
    kind: Kind
    blocks: Sequence[Block]
    intro: str = ""
    paid_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kind("section", self)

    @property
    def name(self) -> str:
        """What a refusal calls it."""
        return f"the section {self.title!r}"

    def shown(self) -> Iterator[Shown]:
        """The section itself and every figure in it."""
        yield self
        yield from _figures(self.blocks)


def _figures(blocks: Sequence[Block]) -> Iterator[Figure]:
    """Those in cards included."""
    for block in blocks:
        if isinstance(block, Figures):
            yield from block.figures
        elif isinstance(block, Cards):
            for card in block.cards:
                yield from _figures(card.blocks)
