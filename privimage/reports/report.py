"""The report: one self-contained HTML file that tells a data steward what was released and what is promised.

It refuses to carry anything computed from sensitive images without a charge, unless it says loudly that it is
internal. It computes nothing: all that it shows comes in `ReportData`, as sections (`blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from privimage.errors import DataError
from privimage.reports.blocks import Section
from privimage.reports.figures import INTERNAL, Figure, check_releasable
from privimage.reports.layout import section_html
from privimage.reports.page import escaped, page

__all__ = ["ReportData", "render_report"]

MAX_BYTES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report says.

    `num_private_images` is public under the zero-out relation. `headline` holds the few figures of quality that stand
    first. `paid` are the ids of the ledger entries that paid for what is reported.
    """

    title: str
    description: str
    internal: bool
    epsilon: float
    delta: float
    relation: str
    num_private_images: int
    num_classes: int
    guarantee: Literal["differential privacy", "none"]
    sections: Sequence[Section]
    headline: Sequence[Figure] = ()
    paid: Sequence[str] = ()


def render_report(data: ReportData) -> str:
    """The report as one HTML5 document of at most 5 MB that fetches nothing and needs no script.

    Guarantee: without `data.internal`, no internal figure and no internal section is in it. Optional blocks are left
    out where the document would be too large with them.

    Raises:
        PrivacyRefused: a report that is not internal was given internal figures or sections.
        Uncharged: it was given a charged one that was not paid.
        DataError: the document is too large even without optional blocks.
    """
    if not data.internal:
        sections = [shown for section in data.sections for shown in section.shown()]
        check_releasable([*data.headline, *sections], data.paid)
    document = _document(data, with_optional=True)
    if len(document.encode()) > MAX_BYTES:
        document = _document(data, with_optional=False)
    if len(size := document.encode()) > MAX_BYTES:
        raise DataError(
            f"The report has {len(size) / 1e6:.1f} MB, expected at most {MAX_BYTES / 1e6:.0f} MB: give it fewer pictures "
            "per class."
        )
    return document


def _document(data: ReportData, *, with_optional: bool) -> str:
    """The whole page."""
    parts = (section_html(section, with_optional=with_optional) for section in data.sections)
    return page(data.title, _headline(data) + "".join(parts), INTERNAL if data.internal else None)


def _headline(data: ReportData) -> str:
    """Title, the numbers that matter most, and what they mean."""
    numbers = (
        *((escaped(figure.name), escaped(figure.value), escaped(figure.note)) for figure in data.headline),
        ("epsilon", f"{data.epsilon:g}", "of the release, in all"),
        ("delta", _power_of_ten(data.delta), ""),
        ("sensitive images", f"{data.num_private_images:,}", "in training"),
        ("classes", f"{data.num_classes:,}", ""),
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd>{f'<dd class=soft>{note}</dd>' if note else ''}</div>"
        for name, value, note in numbers
    )
    description = f'<p class="lead">{escaped(data.description)}</p>\n' if data.description else ""
    return (
        f'<h1>{escaped(data.title)}</h1>\n{description}<div class="card">\n<dl class="numbers">{cells}</dl>\n'
        f"{_promise(data)}\n</div>\n"
    )


def _promise(data: ReportData) -> str:
    """What epsilon and delta mean, in plain words, or that they mean nothing here."""
    if data.guarantee == "none":
        return (
            '<p class="warning">No privacy guarantee: this run used settings, such as a test generator for its noise, '
            "that void the numbers above. Treat its images like the sensitive ones.</p>"
        )
    # Beyond this, the number says nothing that the power does not.
    factor = f" ≈ {math.exp(data.epsilon):,.{2 if data.epsilon < 4 else 0}f}" if data.epsilon <= 20 else ""
    scope = " It covers the release, not this internal report." if data.internal else ""
    return (
        "<p>For any single image, whether it was in the training set changes the probability of any outcome of this "
        f"release by a factor of at most e<sup>{data.epsilon:g}</sup>{factor} (plus {_power_of_ten(data.delta)})."
        f"{scope}</p>\n"
        f"<p>Somebody who holds it for as likely as not that a certain image was in it can be {_certainty(data.epsilon)} "
        f"sure after seeing the release, at the very worst and but for delta.</p>\n"
        '<p class="soft">The unit of protection is one image: several images of one person are protected less. '
        f"Neighbouring data sets: {escaped(data.relation)}.</p>"
    )


def _certainty(epsilon: float) -> str:
    """What even odds become at most, in percent, with as many digits as tell it from certainty; rounded up."""
    doubt = 100 / (1 + math.exp(min(epsilon, 700)))
    if doubt < 1e-4:
        return "all but completely"
    digits = max(0, -math.floor(math.log10(doubt)))
    return f"{100 - math.floor(doubt * 10**digits) / 10**digits:.{digits}f}%"


def _power_of_ten(value: float) -> str:
    """A small number as HTML, such as 1.5 x 10 to the -5."""
    if value == 0 or value >= 0.001:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    factor = mantissa.rstrip("0").rstrip(".")
    return f"{'' if factor == '1' else factor + ' × '}10<sup>−{abs(int(exponent))}</sup>"
