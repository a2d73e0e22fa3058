"""The shell of an HTML page: style, escaping, tables, embedded pictures. It knows nothing of what a page tells.

Functions named after an element return HTML; every argument called `text` or `cells` is plain text and is escaped
here, every argument called `body` is HTML already.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Noted", "escaped", "page", "picture", "section", "table"]

# Nothing may be fetched or executed, whatever a class name holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"

STYLE = """
:root { color-scheme: light dark; --paper: #faf9f6; --card: #ffffff; --ink: #25251f; --soft: #66655c; --line: #dedcd2;
  --accent: #1f6b66; --alarm: #9c1f1f; --alarm-ink: #ffffff; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #161715; --card: #1e201d; --ink: #dfddd4;
  --soft: #a09e93; --line: #373933; --accent: #7cc4bb; --alarm: #a82c2c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2 { font-family: Georgia, "Iowan Old Style", "DejaVu Serif", serif; font-weight: 600; line-height: 1.2;
  overflow-wrap: anywhere; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 .9rem; max-width: 44rem; }
section { margin-top: 2.75rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
img { max-width: 100%; height: auto; vertical-align: middle; }
code, pre { font-family: ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; font-size: .875rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
sup { line-height: 0; font-size: .7em; }
.soft { color: var(--soft); }
.lead { font-size: 1.1rem; color: var(--soft); }
.banner { background: var(--alarm); color: var(--alarm-ink); padding: .9rem 1.25rem; text-align: center;
  font-weight: 700; }
.warning { border-left: 4px solid var(--alarm); padding: .1rem 0 .1rem .9rem; font-weight: 600; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.4rem 1.5rem 1rem;
  margin-top: 1.6rem; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 0 0 1rem; }
.numbers div { display: flex; flex-direction: column; }
.numbers dt { color: var(--soft); font-size: .875rem; }
.numbers dd { margin: 0; font: 600 1.9rem/1.25 Georgia, "DejaVu Serif", serif; color: var(--accent);
  font-variant-numeric: lining-nums tabular-nums; }
.numbers .soft { font: .8rem/1.35 system-ui, "Segoe UI", Roboto, sans-serif; max-width: 15rem; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.75rem 2.25rem; }
.grid svg, figure > svg { display: block; width: 100%; max-width: 36rem; height: auto; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .875rem; line-height: 1.35; overflow-wrap: anywhere; }
.entry { break-inside: avoid; min-width: 0; }
.pictures { display: grid; grid-template-columns: fit-content(9rem) 1fr; gap: .45rem 1rem; align-items: center; }
.pictures figure { display: contents; }
.pictures img { max-height: 4rem; border-radius: 3px; }
.grid .pictures { grid-template-columns: 1fr; gap: .2rem; }
.grid .pictures img { max-height: 2.6rem; }
.tag { display: inline-block; margin: 0 0 .5rem; padding: .05rem .55rem; border: 1px solid var(--line);
  border-radius: 1rem; color: var(--soft); font-size: .78rem; line-height: 1.5; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem 1.1rem .45rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; font-variant-numeric: lining-nums tabular-nums; }
td:last-child:not(.number) { overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; font-size: .84rem; white-space: nowrap; }
tbody th { font-weight: 600; min-width: 6.5rem; }
td.number, th.number { text-align: right; white-space: nowrap; }
tfoot td, tfoot th { border-bottom: 0; font-weight: 600; }
small { display: block; font-size: .84rem; font-weight: 400; line-height: 1.4; color: var(--soft); }
caption { text-align: left; color: var(--soft); padding: .9rem 0 .2rem; }
/* A table that is wider than the page is scrolled; its caption is not. */
caption span { display: inline-block; max-width: min(44rem, calc(100vw - 2.5rem)); }
@media (max-width: 34rem) { main { padding: 1.5rem 1rem 3rem; } .card { padding: 1.1rem 1.1rem .6rem; }
  .numbers { gap: .8rem 2rem; } .numbers dd { font-size: 1.55rem; } table { font-size: .875rem; }
  th, td { padding-right: .7rem; } }
@media print { body { background: #fff; font-size: 10pt; } main { max-width: none; padding: 0; }
  section { margin-top: 1.5rem; } h2, h3, thead { break-after: avoid; } tr, figure, img, .card { break-inside: avoid; }
  .banner { border: 3px solid #9c1f1f; background: #fff; color: #9c1f1f; } .scroll { overflow: visible; }
  .grid { grid-template-columns: 1fr 1fr; gap: 1.2rem 1.5rem; } h2, .tag { break-after: avoid; }
  /* The head of a table, and its foot, are printed on every page; by Chromium only if they may not be broken. */
  body { display: table; width: 100%; border-collapse: collapse; } main { display: table-row-group; }
  .banner { display: table-header-group; break-inside: avoid; } main ~ .banner { display: table-footer-group; } }
"""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """The text of a cell with a note below it, in small."""

    text: str
    note: str


def escaped(text: object) -> str:
    """Plain text as HTML, safe between tags and in a quoted attribute."""
    return html.escape(str(text), quote=True)


def page(title_text: str, body: str, banner_text: str | None = None) -> str:
    """A complete HTML5 document that fetches nothing and runs nothing; the banner stands at both ends."""
    banner = f'<div class="banner" role="alert">{escaped(banner_text)}</div>\n' if banner_text else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title_text)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{banner}<main>\n{body}\n</main>\n{banner}</body>\n</html>\n"
    )


def section(title_text: str, intro_text: str, body: str, tag_text: str = "") -> str:
    """A titled part of the page; nothing where there is nothing to show."""
    if not body:
        return ""
    tag = f'<p class="tag">{escaped(tag_text)}</p>\n' if tag_text else ""
    intro = f'<p class="soft">{escaped(intro_text)}</p>\n' if intro_text else ""
    return f"<section>\n<h2>{escaped(title_text)}</h2>\n{tag}{intro}{body}\n</section>\n"


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    numbers: Sequence[int] = (),
    foot: Sequence[object] | None = None,
    caption_text: str = "",
) -> str:
    """A table whose first column names its rows; the columns in `numbers` stand at the right. Empty without rows."""
    body = "\n".join(_cells(row, numbers) for row in rows)
    if not body:
        return ""
    cells = enumerate(head)
    columns = "".join(f'<th scope="col"{_align(index, numbers)}>{_cell(name)}</th>' for index, name in cells)
    last = f"\n<tfoot>{_cells(foot, numbers)}</tfoot>" if foot else ""
    head_and_body = f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    caption = f"<caption><span>{escaped(caption_text)}</span></caption>\n" if caption_text else ""
    return f'<div class="scroll"><table>\n{caption}{head_and_body}{last}\n</table></div>'


def picture(png: bytes, alt_text: str) -> str:
    """A PNG inside the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escaped(alt_text)}">'


def _cell(cell: object) -> str:
    """What stands in a cell."""
    if isinstance(cell, Noted) and cell.note:
        return f"{escaped(cell.text)}<small>{escaped(cell.note)}</small>"
    return escaped(cell.text if isinstance(cell, Noted) else cell)


def _cells(cells: Sequence[object], numbers: Sequence[int]) -> str:
    """One row."""
    first, *others = cells
    rest = "".join(f"<td{_align(column, numbers)}>{_cell(cell)}</td>" for column, cell in enumerate(others, start=1))
    return f'<tr><th scope="row"{_align(0, numbers)}>{_cell(first)}</th>{rest}</tr>'


def _align(column: int, numbers: Sequence[int]) -> str:
    """The class of a column of numbers."""
    return ' class="number"' if column in numbers else ""
