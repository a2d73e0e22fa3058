"""The report: self-contained, safe against hostile names, and a wall between internal and released figures."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from privimage.errors import DataError, PrivacyRefused, Uncharged
from privimage.release import report
from privimage.release.figures import Figure
from privimage.release.pictures import sample_grid, thumbnail_strip
from privimage.release.report import ChosenCategory, ChosenClass, ReportData, StageCost, render_report

HOSTILE = "<script>alert('x')</script>\"><img src=http://example.org/x>"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
BANNER = "must not leave the private side"

DATA = ReportData(
    title="Digits",
    description="Two digits.",
    internal=False,
    epsilon=1.0,
    delta=1e-5,
    relation="zero-out",
    num_private_images=1437,
    guarantee="differential privacy",
    samples_png=sample_grid(IMAGES, [0, 1] * 3, ["zero", "one"]),
    class_names=("zero", "one"),
    chosen=(
        ChosenClass(
            class_name="zero",
            categories=(
                ChosenCategory(name="letter O", noisy_votes=120.0, example_png=thumbnail_strip(IMAGES[:1])),
                ChosenCategory(name="letter D", noisy_votes=-4.0),
            ),
        ),
    ),
    curves={"Generator: loss by step": {"loss": [(0, 1.0), (10, 0.5)]}},
    figures=(Figure(name="Classifier accuracy", value="93.1 %", note="public validation", kind="public"),),
    mechanisms=(("Query", "discrete Gaussian", "0.21"),),
    costs=(
        StageCost(stage="query", seconds=9.5, what="votes"),
        StageCost(stage="finetune", seconds=4210.0, what="steps"),
    ),
    ledger_entries=(("000002", "reserve", "query"),),
    provenance={"Code": "privimage 0.1.0"},
    verify_command="privimage verify out/digits",
)
INTERNAL_FIGURE = Figure(name="Accuracy on real images", value="84.7 %", note="", kind="internal")
INTERNAL = replace(DATA, internal=True, figures=(INTERNAL_FIGURE,), confusion=((8, 2), (1, 9)))


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


def test_every_picture_has_an_alternative_text() -> None:
    pictures = [attributes for tag, attributes in Page(render_report(DATA)).tags if tag == "img"]
    assert len(pictures) == 2
    assert all(attributes["alt"] for attributes in pictures)


def test_hostile_text_is_only_ever_text() -> None:
    hostile = ReportData(
        title=HOSTILE,
        description=HOSTILE,
        internal=True,
        epsilon=2.0,
        delta=1e-6,
        relation=HOSTILE,
        num_private_images=1,
        guarantee="differential privacy",
        samples_png=DATA.samples_png,
        class_names=(HOSTILE, HOSTILE),
        chosen=(
            ChosenClass(
                class_name=HOSTILE,
                categories=(ChosenCategory(name=HOSTILE, noisy_votes=1, example_png=DATA.samples_png),),
            ),
        ),
        curves={HOSTILE: {HOSTILE: [(0, 1.0)], "b": [(0, 1.0)]}},
        figures=(Figure(name=HOSTILE, value=HOSTILE, note=HOSTILE, kind="internal"),),
        mechanisms=((HOSTILE, HOSTILE, HOSTILE),),
        costs=(StageCost(stage=HOSTILE, seconds=1, what=HOSTILE),),
        ledger_entries=((HOSTILE, HOSTILE, HOSTILE),),
        provenance={HOSTILE: HOSTILE},
        verify_command=HOSTILE,
        confusion=((1, 0), (0, 1)),
    )
    page = Page(render_report(hostile))
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.tags)


def test_a_release_refuses_internal_figures_and_the_confusion_matrix() -> None:
    with pytest.raises(PrivacyRefused, match="Accuracy on real images") as caught:
        render_report(replace(DATA, figures=(*DATA.figures, INTERNAL_FIGURE)))
    assert "84.7" not in str(caught.value)
    with pytest.raises(PrivacyRefused, match="confusion matrix"):
        render_report(replace(DATA, confusion=((8, 2), (1, 9))))


def test_a_release_carries_a_charged_figure_with_the_entry_that_paid_for_it() -> None:
    charged = Figure(name="Noise", value="3 votes", note="", kind="charged", paid_by=("query-1",))
    assert "charged query-1" in render_report(replace(DATA, figures=(charged,), paid=("query-1",)))
    with pytest.raises(Uncharged, match="cannot carry Noise"):
        render_report(replace(DATA, figures=(charged,)))


def test_figures_of_classes_stand_in_one_table_with_gaps_where_there_are_none() -> None:
    def of(name: str, of_class: str, value: str) -> Figure:
        return Figure(name=name, value=value, note="some features", kind="internal", of_class=of_class)

    figures = (of("FID", "zero", "1.5"), of("KID", "zero", "0.1"), of("KID", "<one>", "0.2"))
    document = render_report(replace(INTERNAL, figures=figures))
    table = document.partition("Figures of each class")[2].partition("</section>")[0]
    assert "some features (internal)" in table
    assert re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", table) == [
        "Class", "FID", "KID", "zero", "1.5", "0.1", "&lt;one&gt;", "–", "0.2",
    ]  # fmt: skip
    with pytest.raises(PrivacyRefused, match="FID, KID"):
        render_report(replace(DATA, figures=figures))


def test_pairs_with_training_images_are_for_the_internal_report_only() -> None:
    pairs = sample_grid(IMAGES[:2], [0, 0], ["1: distance 0.1"])
    assert "Nearest pairs" in render_report(replace(INTERNAL, near_copies_png=pairs))
    assert "Nearest pairs" not in render_report(INTERNAL)
    with pytest.raises(PrivacyRefused, match="training images"):
        render_report(replace(DATA, near_copies_png=pairs))


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
    assert ".banner { display: table-header-group; } main ~ .banner { display: table-footer-group; }" in printed
    assert "main { display: table-row-group; }" in printed


def test_the_headline_says_what_epsilon_and_delta_mean() -> None:
    document = render_report(DATA)
    assert "by a factor of at most e<sup>1</sup> ≈ 2.72 (plus 10<sup>−5</sup>)" in document
    assert "1,437" in document
    assert "≈" not in render_report(replace(DATA, epsilon=1000.0))


def test_a_run_without_a_guarantee_makes_no_promise() -> None:
    document = render_report(replace(DATA, guarantee="none"))
    assert "No privacy guarantee" in document
    assert "by a factor of at most" not in document


def test_times_are_readable_and_summed() -> None:
    document = render_report(DATA)
    assert "9.5 s" in document
    assert "1 h 10 min" in document
    assert [report._duration(seconds) for seconds in (59.99, 60, 3599.6, 360_000)] == [
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
    document = render_report(
        replace(DATA, chosen=(), curves={}, figures=(), mechanisms=(), costs=(), ledger_entries=(), provenance={})
    )
    assert re.findall(r"<h2>(.*?)</h2>", document) == ["Synthetic images", "How to verify"]


def test_a_report_that_is_too_large_leaves_out_examples_and_then_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(render_report(DATA).encode())
    monkeypatch.setattr(report, "MAX_BYTES", size - 1)
    assert "left out to keep this file small" in render_report(DATA)
    monkeypatch.setattr(report, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="fewer images per class"):
        render_report(DATA)


def test_the_same_data_gives_the_same_report() -> None:
    assert render_report(DATA) == render_report(DATA)
