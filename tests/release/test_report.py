"""The report: self-contained, safe against hostile names, and a wall between internal and released figures."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from privimage.errors import DataError, PrivacyRefused, Uncharged
from privimage.release.section import accounting
from privimage.reports import contents, report
from privimage.reports.blocks import Card, Cards, Figures, Picture, Pictures, Plot, Section, Table, Text
from privimage.reports.figures import Figure, Kind
from privimage.reports.pictures import bar_svg, thumbnail_strip
from privimage.reports.report import ReportData, render_report
from tests.release.example import CERTIFICATE, QUERY

HOSTILE = "<script>alert('x')</script>\"><img src=http://example.org/x>"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1] * 3)
BANNER = "must not leave the private side"
EXAMPLE = Picture(png=thumbnail_strip(IMAGES[:1]), alt="Public examples of letter O", caption="letter O: 120 votes")


def everything(name: str, counts: tuple[tuple[int, ...], ...] = ((8, 2), (1, 9))) -> list[Section]:
    """One section of each making, every text of which is `name`, the internal ones last."""
    plot = bar_svg([name, name], [3, -1], name, chosen={0})
    figure = Figure(name=name, value=name, note=name, kind="public")
    return [
        contents.samples((IMAGES, LABELS), (name, name), 2, is_public=LABELS > 9),
        Section(
            title=name,
            kind="charged",
            paid_by=("query-1",),
            intro=name,
            blocks=[
                Text(text=name, tone="warning"),
                Table(head=(name, name), rows=[(name, name)], foot=(name, name), caption=name),
                Cards(
                    cards=[Card(title=name, blocks=[Plot(svg=plot, caption=name), Pictures(pictures=[EXAMPLE])])],
                ),
            ],
        ),
        contents.figures([figure, replace(figure, of_class=name)], name),
        contents.curves({name: {name: [(0, 1.0)], "b": [(0, 1.0)]}}),
        contents.costs([contents.StageCost(stage=name, seconds=1, what=name, epsilon=None)]),
        accounting(CERTIFICATE.model_copy(update={"mechanisms": (QUERY.model_copy(update={"in_words": name}),)})),
        contents.provenance({name: name}),
        contents.verification(name),
        contents.real_beside_synthetic((IMAGES, LABELS), (IMAGES, LABELS), (name, f"{name} 2"), 2),
        contents.confusion(counts, (name, name)),
        contents.nearest_pairs(thumbnail_strip(IMAGES[:2])),
    ]


DATA = ReportData(
    title="Digits",
    description="Two digits.",
    internal=False,
    epsilon=1.0,
    delta=1e-5,
    relation="zero-out",
    num_private_images=1437,
    num_classes=2,
    guarantee="differential privacy",
    headline=(Figure(name="Inception Score", value="7.5", note="public classifier", kind="public"),),
    sections=everything("digit")[:-3],
    paid=("query-1",),
)
INTERNAL_FIGURE = Figure(name="Accuracy on real images", value="84.7 %", note="", kind="internal")
INTERNAL = replace(DATA, internal=True, headline=(INTERNAL_FIGURE,), sections=everything("digit"))


class Page(HTMLParser):
    """Every tag with its attributes, and whether all tags were closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("data", [DATA, INTERNAL])
def test_a_report_fetches_nothing_and_runs_nothing(data: ReportData) -> None:
    document = render_report(data)
    page = Page(document)
    assert not page.open
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value and value.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"@import|url\((?!#)", document)
    assert "default-src &#x27;none&#x27;" in document


def test_every_picture_and_every_plot_has_an_alternative_text() -> None:
    tags = Page(render_report(INTERNAL)).tags
    pictures = [attributes["alt"] for tag, attributes in tags if tag == "img"]
    plots = [attributes["aria-label"] for tag, attributes in tags if tag == "svg"]
    assert len(pictures) == 2 + 1 + 4 + 1
    assert len(plots) == 4
    assert all([*pictures, *plots])
    assert "2 synthetic images of class digit" in pictures


def test_hostile_text_is_only_ever_text() -> None:
    hostile = replace(
        INTERNAL,
        title=HOSTILE,
        description=HOSTILE,
        relation=HOSTILE,
        headline=(Figure(name=HOSTILE, value=HOSTILE, note=HOSTILE, kind="internal"),),
        sections=everything(HOSTILE),
    )
    page = Page(render_report(hostile))
    assert not page.open
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.tags)


@pytest.mark.parametrize("number", [-3, -2, -1])
def test_a_release_refuses_an_internal_section_by_its_title(number: int) -> None:
    section = everything("digit", counts=((84700, 2), (1, 9)))[number]
    with pytest.raises(PrivacyRefused, match=f"cannot carry the section '{section.title}'") as caught:
        render_report(replace(DATA, sections=(*DATA.sections, section)))
    assert "84700" not in str(caught.value)


def test_a_release_refuses_internal_figures_wherever_they_stand() -> None:
    figures = Figures(figures=[INTERNAL_FIGURE])
    nested = Cards(cards=[Card(title="", blocks=[Cards(cards=[Card(title="", blocks=[figures])])])])
    for blocks in ([figures], [Text(text="x"), nested]):
        section = Section(title="Results", kind="public", blocks=blocks)
        with pytest.raises(PrivacyRefused, match="cannot carry Accuracy on real images") as caught:
            render_report(replace(DATA, sections=(section,)))
        assert "84.7" not in str(caught.value)
    with pytest.raises(PrivacyRefused, match="cannot carry Accuracy on real images"):
        render_report(replace(DATA, headline=(INTERNAL_FIGURE,)))


def test_a_release_carries_what_is_charged_with_the_entry_that_paid_for_it() -> None:
    charged = Figure(name="Noise", value="3 votes", note="", kind="charged", paid_by=("query-2",))
    section = Section(title="Votes", kind="charged", blocks=[Text(text="3")], paid_by=("query-3",))
    sections = (contents.figures([charged]), section)
    document = render_report(replace(DATA, sections=sections, paid=("query-2", "query-3")))
    assert "<small>charged, paid by query-2</small>" in document
    assert '<p class="tag">charged, paid by query-3</p>' in document
    with pytest.raises(Uncharged, match="cannot carry Noise, the section 'Figures', the section 'Votes': no mechanism"):
        render_report(replace(DATA, sections=sections))


@pytest.mark.parametrize(("kind", "paid_by"), [("charged", ()), ("public", ("query-1",)), ("internal", ("query-1",))])
def test_charged_sections_and_only_they_name_what_paid(kind: Kind, paid_by: tuple[str, ...]) -> None:
    with pytest.raises(Uncharged, match="ledger entries"):
        Section(title="Votes", kind=kind, blocks=[], paid_by=paid_by)


def test_figures_of_classes_stand_in_one_table_with_gaps_where_there_are_none() -> None:
    def of(name: str, of_class: str, value: str) -> Figure:
        return Figure(name=name, value=value, note="some features", kind="internal", of_class=of_class)

    figures = (of("FID", "zero", "1.5"), of("KID", "zero", "0.1"), of("KID", "<one>", "0.2"))
    document = render_report(replace(INTERNAL, sections=(contents.figures(figures),)))
    table = document.partition("<main>")[2].partition("<table>")[2].partition("</table>")[0]
    assert "<caption><span>internal · some features</span></caption>" in table
    assert re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", table) == [
        "Class", "FID", "KID", "zero", "1.5", "0.1", "&lt;one&gt;", "–", "0.2",
    ]  # fmt: skip
    with pytest.raises(PrivacyRefused, match="FID, KID"):
        render_report(replace(DATA, sections=(contents.figures(figures),)))


def test_the_confusion_matrix_shows_its_counts_and_many_classes_without_them() -> None:
    small = render_report(replace(INTERNAL, sections=(contents.confusion(((81, 2), (1, 9)), ("a", "b")),)))
    assert all(f">{count}</text>" in small for count in (81, 2, 1, 9))
    many = tuple(tuple(7 for _ in range(30)) for _ in range(30))
    large = render_report(replace(INTERNAL, sections=(contents.confusion(many, ["a"] * 30),)))
    assert ">7</text>" not in large
    assert len(large) < 60_000


def test_a_class_without_images_is_named_and_has_no_picture() -> None:
    shown = contents.samples((IMAGES, LABELS * 0), ("zero", "one"), 2, is_public=LABELS > 9)
    document = render_report(replace(DATA, sections=(shown,)))
    assert document.count("<img ") == 1
    assert "one: none" in document


def test_public_images_have_rows_of_their_own() -> None:
    """They are never shown as if they were generated."""
    few, kinds = np.stack([np.full((1, 8, 8), grey, dtype=np.uint8) for grey in (10, 20, 30)]), np.array([0, 0, 1])
    shown = contents.samples((few, kinds), ("cat", "dog"), 2, is_public=np.array([False, True, False]))
    assert shown.title == "Released images" and "1 of all images are public ones" in shown.intro
    (block,) = shown.blocks
    assert isinstance(block, Pictures)
    colours = {
        row.caption: row.png and set(np.asarray(Image.open(io.BytesIO(row.png)).convert("L")).flat)
        for row in block.pictures
    }
    assert colours == {"cat": {10}, "cat, public": {20}, "dog": {30}, "dog, public: none": None}


def test_an_internal_report_carries_its_banner_at_both_ends_and_a_release_none() -> None:
    document = render_report(INTERNAL)
    assert document.count(BANNER) == 2
    assert document.index(BANNER) < document.index("<main>") < document.index("</main>") < document.rindex(BANNER)
    assert "84.7 %" in document
    assert "Confusion matrix" in document
    assert BANNER not in render_report(DATA)


def test_an_internal_report_that_is_printed_carries_its_banner_on_every_page() -> None:
    """Browsers repeat the head and the foot of a table on each page; nothing else reserves its own room there."""
    printed = render_report(INTERNAL).partition("@media print {")[2].partition("</style>")[0]
    assert "body { display: table;" in printed
    assert (
        ".banner { display: table-header-group; break-inside: avoid; } main ~ .banner { display: table-footer-group; }"
        in printed
    )
    assert "main { display: table-row-group; }" in printed


def test_the_headline_says_how_good_it_is_and_what_epsilon_and_delta_mean() -> None:
    document = render_report(DATA)
    assert "<dt>Inception Score</dt><dd>7.5</dd>" in document
    assert "by a factor of at most e<sup>1</sup> ≈ 2.72 (plus 10<sup>−5</sup>)" in document
    assert "can be 74% sure after seeing the release" in document
    assert "1,437" in document
    assert "≈" not in render_report(replace(DATA, epsilon=1000.0))


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (0.1, "53%"),
        (1.0, "74%"),
        (3.0, "96%"),
        (5.0, "99.4%"),
        (10.0, "99.996%"),
        (15.0, "all but completely"),
        (1e4, "all but completely"),
    ],
)
def test_certainty_is_rounded_up_and_never_to_certainty(epsilon: float, text: str) -> None:
    assert report._certainty(epsilon) == text


def test_a_run_without_a_guarantee_makes_no_promise() -> None:
    document = render_report(replace(DATA, guarantee="none"))
    assert "No privacy guarantee" in document
    assert "by a factor of at most" not in document


def test_times_are_readable_and_summed_and_those_of_private_stages_are_not_told() -> None:
    costs = [
        contents.StageCost(stage="pretrain", seconds=4210.0, what="steps", epsilon=None),
        contents.StageCost(stage="select", seconds=9.5, what="rows", epsilon=None),
        contents.StageCost(stage="query", seconds=None, what="votes", epsilon=0.21),
    ]
    table = render_report(replace(DATA, sections=(contents.costs(costs),))).partition("<table>")[2]
    assert re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", table)[3:] == [
        "pretrain<small>steps</small>", "1 h 10 min", "–",
        "select<small>rows</small>", "9.5 s", "–",
        "query<small>votes</small>", "not shown", "0.21 alone",
        "Public stages together", "1 h 10 min", "",
    ]  # fmt: skip
    assert [contents._duration(seconds) for seconds in (59.99, 60, 3599.6, 360_000)] == [
        "1 min 00 s",
        "1 min 00 s",
        "1 h 00 min",
        "100 h 00 min",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10<sup>−5</sup>"), (2.5e-6, "2.5 × 10<sup>−6</sup>"), (0.01, "0.01"), (0.0, "0")]
)
def test_delta_reads_as_a_power_of_ten(value: float, text: str) -> None:
    assert report._power_of_ten(value) == text


def test_sections_without_content_are_left_out() -> None:
    empty = (
        contents.figures([]),
        contents.curves({}),
        contents.costs([]),
        contents.provenance({}),
        contents.verification("privimage verify"),
        Section(title="Cards", kind="public", blocks=[Cards(cards=[Card(title="x", blocks=[Text(text="")])])]),
    )
    document = render_report(replace(DATA, sections=empty))
    assert re.findall(r"<h2>(.*?)</h2>", document) == ["How to verify"]


def test_a_report_that_is_too_large_leaves_out_what_is_optional_and_then_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = Pictures(pictures=[EXAMPLE], optional=True)
    plot = Plot(svg=bar_svg(["a"], [1], "votes"), optional=True)
    section = Section(
        title="Chosen", kind="public", blocks=[Cards(cards=[Card(title="zero", blocks=[examples, plot])])]
    )
    data = replace(DATA, sections=(section,))
    whole = render_report(data)
    assert "<img " in whole and "<svg " in whole and "left out" not in whole
    monkeypatch.setattr(report, "MAX_BYTES", len(whole.encode()) - 1)
    small = render_report(data)
    assert "left out to keep this file small" in small
    assert "letter O: 120 votes" in small
    assert "<img " not in small and "<svg " not in small
    monkeypatch.setattr(report, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="fewer pictures per class"):
        render_report(data)


def test_the_same_data_gives_the_same_report() -> None:
    assert render_report(DATA) == render_report(DATA)


def test_a_thousand_classes_of_pictures_that_do_not_compress_still_make_a_report() -> None:
    """A release that is refused for its report was paid for all the same."""
    names = tuple(f"class {number}" for number in range(1000))
    images = np.random.default_rng(0).integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(2000) % 1000
    shown = contents.samples((images, labels), names, 12, is_public=labels < 0)
    document = render_report(replace(DATA, sections=[shown]))
    assert len(document.encode()) < report.MAX_BYTES
    assert "left out to keep this file small" in document and "class 999" in document
    few = contents.samples((images[:20], labels[:20] % 3), names[:3], 12, is_public=labels[:20] < 0)
    assert "left out" not in render_report(replace(DATA, sections=[few]))
