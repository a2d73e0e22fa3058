"""Blocks as HTML. It computes nothing and decides nothing; `page` has the elements."""

from __future__ import annotations

from collections.abc import Sequence

from privimage.reports.blocks import Block, Cards, Code, Figures, Picture, Pictures, Plot, Section, Table, Text
from privimage.reports.figures import Figure, Shown
from privimage.reports.page import Noted, escaped, picture, section, table

__all__ = ["section_html"]

LEFT_OUT = "Example pictures are left out to keep this file small."


def section_html(shown: Section, *, with_optional: bool) -> str:
    """The section with its kind and what paid for it; nothing where all its blocks are empty."""
    body = _blocks(shown.blocks, with_optional)
    if body and not with_optional and _has_optional(shown.blocks):
        body = f'<p class="soft">{LEFT_OUT}</p>\n{body}'
    return section(shown.title, shown.intro, body, tag_text=_right(shown))


def _blocks(blocks: Sequence[Block], with_optional: bool) -> str:
    return "\n".join(part for block in blocks if (part := _block(block, with_optional)))


def _block(block: Block, with_optional: bool) -> str:
    match block:
        case Text():
            kind = "" if block.tone == "plain" else f' class="{block.tone}"'
            return f"<p{kind}>{escaped(block.text)}</p>" if block.text else ""
        case Code():
            return f"<pre><code>{escaped(block.text)}</code></pre>" if block.text else ""
        case Table():
            return table(block.head, block.rows, block.numbers, block.foot, block.caption)
        case Figures():
            return "\n".join(part for part in (_figures(block.figures), *_of_classes(block.figures)) if part)
        case Plot():
            caption = f"<figcaption>{escaped(block.caption)}</figcaption>" if block.caption else ""
            return "" if block.optional and not with_optional else f"<figure>{block.svg}{caption}</figure>"
        case Pictures():
            rows = "".join(_picture(one, with_optional or not block.optional) for one in block.pictures)
            return f'<div class="pictures">\n{rows}</div>' if rows else ""
        case Cards():
            return _cards(block, with_optional)


def _picture(one: Picture, shown: bool) -> str:
    """A row: caption, picture."""
    caption = f"<figcaption>{escaped(one.caption)}</figcaption>"
    return f"<figure>{caption}{picture(one.png, one.alt) if one.png and shown else ''}</figure>\n"


def _cards(cards: Cards, with_optional: bool) -> str:
    parts = "".join(
        f'<div class="entry">{f"<h3>{escaped(card.title)}</h3>" if card.title else ""}\n{body}</div>\n'
        for card in cards.cards
        if (body := _blocks(card.blocks, with_optional))
    )
    return f'<div class="grid">\n{parts}</div>' if parts else ""


def _figures(figures: Sequence[Figure]) -> str:
    """The results, and by which right each one is shown."""
    rows = [
        (Noted(text=figure.name, note=" · ".join(part for part in (_right(figure), figure.note) if part)), figure.value)
        for figure in figures
        if figure.of_class is None
    ]
    return table(("Figure", "Value"), rows, numbers=(1,))


def _of_classes(figures: Sequence[Figure]) -> list[str]:
    """A table for each note: classes by figures; their kind is in the caption, or in the head where it differs."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.of_class is not None:
            groups.setdefault(figure.note, []).append(figure)
    parts = []
    for note, group in groups.items():
        rights = {figure.name: _right(figure) for figure in group}
        alike = len(set(rights.values())) == 1
        head = [Noted(text=name, note="" if alike else right) for name, right in rights.items()]
        cells = {(figure.of_class, figure.name): figure.value for figure in group}
        classes = dict.fromkeys(figure.of_class for figure in group)
        rows = [[str(one), *(cells.get((one, name), "–") for name in rights)] for one in classes]
        caption = f"{_right(group[0])} · {note}" if alike else note
        parts.append(table(("Class", *head), rows, numbers=range(1, len(head) + 1), caption_text=caption))
    return parts


def _right(shown: Shown) -> str:
    """By which right something is shown."""
    return f"{shown.kind}, paid by {', '.join(shown.paid_by)}" if shown.paid_by else shown.kind


def _has_optional(blocks: Sequence[Block]) -> bool:
    """Whether something is left out of a large report."""
    return any(
        (isinstance(block, Plot | Pictures) and block.optional)
        or (isinstance(block, Cards) and any(_has_optional(card.blocks) for card in block.cards))
        for block in blocks
    )
