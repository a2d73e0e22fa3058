"""The report: one self-contained HTML file that tells a data steward what was released and what is promised.

It refuses to carry anything computed from sensitive images without a charge, unless it says loudly that it is
internal. It computes nothing: every number comes in `ReportData`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from privimage.errors import DataError
from privimage.release.figures import INTERNAL, Figure, check_releasable
from privimage.release.page import escaped, page, picture, section, table
from privimage.release.pictures import curve_svg

__all__ = ["ChosenCategory", "ChosenClass", "ReportData", "StageCost", "render_report"]

MAX_BYTES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class ChosenCategory:
    """A public category that a sensitive class chose, with its noisy votes and perhaps an example (public) image."""

    name: str
    noisy_votes: float
    example_png: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class ChosenClass:
    """A sensitive class and the public categories it chose, best first."""

    class_name: str
    categories: Sequence[ChosenCategory]


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """How long a stage took, in seconds, and what it did in that time."""

    stage: str
    seconds: float
    what: str


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report says.

    `num_private_images` is public under the zero-out relation. `curves` maps a chart's title, which also says what
    its steps count, to its series of (step, value) points: of public training only. `mechanisms` holds (name,
    description, epsilon), `ledger_entries` (id, kind, text). `confusion` counts test images by true class (row) and
    predicted class (column). `near_copies_png` shows training
    images. `paid` are the ids of the ledger entries that paid for what is reported.
    """

    title: str
    description: str
    internal: bool
    epsilon: float
    delta: float
    relation: str
    num_private_images: int
    guarantee: Literal["differential privacy", "none"]
    samples_png: bytes
    class_names: Sequence[str]
    chosen: Sequence[ChosenClass]
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
    figures: Sequence[Figure]
    mechanisms: Sequence[tuple[str, str, str]]
    costs: Sequence[StageCost]
    ledger_entries: Sequence[tuple[str, str, str]]
    provenance: Mapping[str, str]
    verify_command: str
    confusion: tuple[tuple[int, ...], ...] | None = None
    near_copies_png: bytes | None = None
    paid: Sequence[str] = ()


def render_report(data: ReportData) -> str:
    """The report as one HTML5 document of at most 5 MB that fetches nothing and needs no script.

    Guarantee: without `data.internal`, no internal figure and no confusion matrix is in it. The example images of
    categories are left out where the document would be too large with them.

    Raises:
        PrivacyRefused: a report that is not internal was given internal figures, or a charged one that was not paid.
        DataError: the document is too large even without example images.
    """
    _refuse_internal_figures(data)
    document = _document(data, with_examples=True)
    if len(document.encode()) > MAX_BYTES:
        document = _document(data, with_examples=False)
    if len(size := document.encode()) > MAX_BYTES:
        raise DataError(
            f"The report has {len(size) / 1e6:.1f} MB, expected at most {MAX_BYTES / 1e6:.0f} MB: give a sample grid "
            "with fewer images per class."
        )
    return document


def _refuse_internal_figures(data: ReportData) -> None:
    """The confusion matrix and training images are internal, too."""
    if data.internal:
        return
    others = {"the confusion matrix": data.confusion, "training images": data.near_copies_png}
    hidden = [
        Figure(name=name, value="", note="", kind="internal") for name, found in others.items() if found is not None
    ]
    check_releasable([*data.figures, *hidden], data.paid)


def _document(data: ReportData, *, with_examples: bool) -> str:
    """The whole page."""
    parts = (
        _headline(data),
        _samples(data),
        _chosen(data.chosen, with_examples),
        _curves(data),
        _figures(data),
        _per_class(data),
        _confusion(data),
        _near_copies(data),
        _costs(data.costs),
        _accounting(data),
        _provenance(data.provenance),
        _verification(data.verify_command),
    )
    return page(data.title, "".join(parts), INTERNAL if data.internal else None)


def _headline(data: ReportData) -> str:
    """Title, the two numbers, and what they mean."""
    numbers = (
        ("epsilon", f"{data.epsilon:g}"),
        ("delta", _power_of_ten(data.delta)),
        ("sensitive images", f"{data.num_private_images:,}"),
        ("classes", f"{len(data.class_names):,}"),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers)
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
        '<p class="soft">The unit of protection is one image: several images of one person are protected less. '
        f"Neighbouring data sets: {escaped(data.relation)}.</p>"
    )


def _samples(data: ReportData) -> str:
    """The grid of synthetic images."""
    alt = f"Grid of synthetic images, one row for each class: {', '.join(data.class_names)}."
    intro = "One row for each class; every image is generated."
    return section("Synthetic images", intro, picture(data.samples_png, alt))


def _chosen(chosen: Sequence[ChosenClass], with_examples: bool) -> str:
    """The public categories of each class."""
    most = max((category.noisy_votes for one in chosen for category in one.categories), default=0.0)
    cards = "".join(
        f'<div class="class"><h3>{escaped(one.class_name)}</h3>\n'
        f"{''.join(_category(category, most, with_examples) for category in one.categories)}</div>\n"
        for one in chosen
    )
    intro = (
        "What the generator was first trained on: the public categories that the noisy votes of each class put first. "
        "The counts are noisy; the example images are public."
    )
    if not with_examples:
        intro += " The example images are left out to keep this file small."
    body = f'<div class="grid">\n{cards}</div>' if cards else ""
    return section("Public categories that each class chose", intro, body)


def _category(category: ChosenCategory, most: float, with_examples: bool) -> str:
    """One category: example, name, noisy votes, bar."""
    shown = category.example_png if with_examples else None
    example = picture(shown, f"Public example of {category.name}") if shown else ""
    width = max(0.0, 100 * category.noisy_votes / most) if most > 0 else 0.0
    return (
        f'<div class="category"><div class="example">{example}</div><span>{escaped(category.name)}</span>'
        f'<data value="{category.noisy_votes:g}">{category.noisy_votes:,.0f}</data>'
        f'<div class="bar" style="width:{width:.1f}%"></div></div>\n'
    )


def _curves(data: ReportData) -> str:
    """The training curves."""
    charts = "".join(f"<figure>{curve_svg(series, '', '', title)}</figure>\n" for title, series in data.curves.items())
    intro = "Of the training on public images. The private training has none to show: its loss is sensitive."
    return section("Training curves", intro, f'<div class="charts">\n{charts}</div>' if charts else "")


def _figures(data: ReportData) -> str:
    """The results, and by which right each one is shown."""
    rows = [
        (figure.name, figure.value, " ".join([figure.kind, *figure.paid_by]), figure.note)
        for figure in data.figures
        if figure.of_class is None
    ]
    intro = "Public: computed without sensitive images, or from the release itself. Charged: paid for in the ledger."
    if data.internal:
        intro += " Internal: computed from sensitive images, paid by nothing."
    return section("Figures", intro, table(("Figure", "Value", "Kind", "Note"), rows, numbers=(1,)))


def _per_class(data: ReportData) -> str:
    """A table for each note: classes by figures, which are all of one kind."""
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in data.figures:
        if figure.of_class is not None:
            groups.setdefault((figure.note, figure.kind), []).append(figure)
    parts = []
    for (note, kind), figures in groups.items():
        names = list(dict.fromkeys(figure.name for figure in figures))
        cells = {(figure.of_class, figure.name): figure.value for figure in figures}
        classes = dict.fromkeys(figure.of_class for figure in figures)
        rows = [[str(one), *(cells.get((one, name), "–") for name in names)] for one in classes]
        shown = table(("Class", *names), rows, numbers=range(1, len(names) + 1))
        parts.append(f'<p class="soft">{escaped(note)} ({escaped(kind)})</p>\n{shown}')
    return section("Figures of each class", "", "\n".join(parts))


def _confusion(data: ReportData) -> str:
    """The confusion matrix, shaded by the share of its row."""
    if data.confusion is None:
        return ""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in data.class_names)
    rows = "\n".join(
        f'<tr><th scope="row">{escaped(name)}</th>{"".join(_share(count, sum(counts)) for count in counts)}</tr>'
        for name, counts in zip(data.class_names, data.confusion, strict=True)
    )
    matrix = f"<table>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    intro = "Test images by true class (row) and by what the classifier trained on synthetic images says (column)."
    return section("Confusion matrix", intro, f'<div class="scroll matrix">{matrix}</div>')


def _near_copies(data: ReportData) -> str:
    """Synthetic images beside the training images that they resemble most."""
    if data.near_copies_png is None:
        return ""
    alt = "Pairs of a synthetic image and the training image nearest to it."
    intro = (
        "At the left synthetic images, at the right the sensitive training images nearest to them, nearest pair first."
    )
    return section("Nearest pairs", intro, picture(data.near_copies_png, alt))


def _share(count: int, total: int) -> str:
    """One cell of the confusion matrix."""
    return f'<td style="background:rgba(var(--heat),{0.6 * count / max(total, 1):.2f})">{count}</td>'


def _costs(costs: Sequence[StageCost]) -> str:
    """Where the time went."""
    rows = [(cost.stage, _duration(cost.seconds), cost.what) for cost in costs]
    foot = ("Total", _duration(sum(cost.seconds for cost in costs)), "")
    intro = "Of the public stages. How long query and fine-tuning took depends on how many images they drew."
    return section("Time", intro, table(("Stage", "Time", "What was done"), rows, numbers=(1,), foot=foot))


def _accounting(data: ReportData) -> str:
    """What was paid, and where it is written."""
    mechanisms = table(("Mechanism", "What it did", "Epsilon"), data.mechanisms, numbers=(2,))
    entries = table(("Ledger entry", "Kind", "Text"), data.ledger_entries)
    intro = "Every mechanism that touched the sensitive images. They are composed as one: the total is above."
    return section("Privacy accounting", intro, "\n<br>\n".join(part for part in (mechanisms, entries) if part))


def _provenance(provenance: Mapping[str, str]) -> str:
    """What it was made of and by."""
    return section("Provenance", "", table(("Item", "Value"), provenance.items()))


def _verification(command: str) -> str:
    """How a reader checks all this."""
    intro = "This command checks every file of the release against its manifest, and the ledger behind it."
    return section("How to verify", intro, f"<pre><code>{escaped(command)}</code></pre>" if command else "")


def _power_of_ten(value: float) -> str:
    """A small number as HTML, such as 1.5 x 10 to the -5."""
    if value == 0 or value >= 0.001:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    factor = mantissa.rstrip("0").rstrip(".")
    return f"{'' if factor == '1' else factor + ' × '}10<sup>−{abs(int(exponent))}</sup>"


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, as coarse as is useful."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
