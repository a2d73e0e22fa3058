"""The wall between internal figures and a release, at the figures, in the stage, and when a release is verified."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from privimage.errors import PrivacyRefused, Uncharged
from privimage.release.export import SUMS, sums
from privimage.reports import contents
from privimage.reports.figures import INTERNAL, Figure, check_releasable
from privimage.reports.report import ReportData
from privimage.running.runner import run_all
from privimage.stages import release as release_stage
from tests.pipeline_fixtures import Answer, Place

PUBLIC = Figure(name="Parameters", value="1,234", note="", kind="public")
CHARGED = Figure(name="Noise", value="3 votes", note="", kind="charged", paid_by=("query-1",))
INTERNAL_FIGURE = Figure(name="FID", value="84.7", note="", kind="internal", of_class="anna")


def test_public_figures_and_paid_ones_may_leave() -> None:
    check_releasable([PUBLIC, CHARGED], ["query-1", "finetune-1"])


def test_an_internal_figure_may_not_and_its_value_is_not_told() -> None:
    with pytest.raises(PrivacyRefused, match="cannot carry FID: computed from sensitive images") as caught:
        check_releasable([PUBLIC, INTERNAL_FIGURE], ["query-1"])
    assert "84.7" not in str(caught.value)


def test_a_charged_figure_that_this_release_did_not_pay_for_may_not() -> None:
    with pytest.raises(Uncharged, match="no mechanism of this release paid"):
        check_releasable([CHARGED], ["query-2"])


@pytest.mark.parametrize(("kind", "paid_by"), [("charged", ()), ("public", ("query-1",)), ("internal", ("query-1",))])
def test_charged_figures_and_only_they_name_what_paid(kind: str, paid_by: tuple[str, ...]) -> None:
    with pytest.raises(Uncharged, match="ledger entries"):
        Figure(name="x", value="1", note="", kind=kind, paid_by=paid_by)  # type: ignore[arg-type]


@pytest.mark.parametrize("planted", [INTERNAL_FIGURE, CHARGED], ids=["internal", "unpaid"])
def test_a_run_whose_release_would_carry_such_a_figure_makes_none(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch, planted: Figure
) -> None:
    def with_one_more(data: ReportData) -> str:
        return render(replace(data, sections=[*data.sections, contents.figures([planted])]))

    render = release_stage.render_report
    monkeypatch.setattr(release_stage, "render_report", with_one_more)
    with pytest.raises(PrivacyRefused, match=f"cannot carry {planted.name}"):
        run_all(pretrained_copy.run())
    assert not (pretrained_copy.folder / "releases").exists()
    assert not list(pretrained_copy.folder.glob("artifacts/release/*/manifest.json"))


def test_every_figure_of_the_evaluation_is_internal_and_none_is_outside_of_the_private_side(finished: Place) -> None:
    metrics = json.loads(finished.payload("evaluate", "metrics.json").read_text())
    assert metrics["kind"] == "internal"
    report = finished.payload("evaluate", "internal.html")
    assert finished.folder / "private" in report.parents
    text = report.read_text()
    assert INTERNAL in text
    utility, shown, safety = (
        text.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0] for title in ("Utility", "Fidelity", "Safety")
    )
    row = r'<th scope="row">([^<]*)<small>(\w+) · '
    kinds = dict(re.findall(row, shown))
    assert kinds.pop("Inception Score") == "public"
    for others in (kinds, dict(re.findall(row, utility)), dict(re.findall(row, safety))):
        assert len(others) > 2
        assert set(others.values()) == {"internal"}
    assert dict(re.findall(r">([^<>]*)<small>(\w+)</small></th>", shown)) == {
        **dict.fromkeys(("FID", "KID", "precision", "recall"), "internal"),
        "Inception Score": "public",
    }
    values = [
        f"{estimate['value']:.3g}"
        for found in metrics["fidelity"].values()
        for estimates in (found["overall"], *found["per_class"].values())
        for estimate in estimates.values()
    ]
    assert values
    assert all(value in text for value in values)


def test_each_figure_of_the_evaluation_names_its_extractor_its_images_and_an_interval(finished: Place) -> None:
    metrics = json.loads(finished.payload("evaluate", "metrics.json").read_text())
    (extractor,) = metrics["fidelity"]
    assert extractor == "public-classifier"
    overall = metrics["fidelity"][extractor]["overall"]
    assert {"FID", "KID", "precision", "recall"} <= set(overall)
    for name, estimate in overall.items():
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["num_synthetic"] == 40
        assert estimate["num_private"] == (0 if name == "Inception Score" else metrics["num_private_test"])
    per_class = metrics["fidelity"][extractor]["per_class"]
    assert list(per_class) == ["anna", "berta", "carla"]
    assert all({"KID", "precision", "recall"} <= set(found) for found in per_class.values())
    why = metrics["not_computed"]
    assert "No Inception weights" in why["inception"]
    assert "needs at least" in why["FID, public-classifier, class anna"]
    assert "FID" not in per_class["anna"]
    shown = finished.payload("evaluate", "internal.html").read_text()
    assert "metrics.json says why.</span></caption>" in shown
    assert f"public-classifier features, 40 synthetic against {metrics['num_private_test']} test images" in shown


def test_an_internal_report_among_the_files_of_a_release_does_not_verify(
    finished_copy: Place, privimage: Callable[..., Answer]
) -> None:
    release: Path = finished_copy.release
    report = finished_copy.payload("evaluate", "internal.html").read_bytes()
    (release / "report.html").write_bytes(report)
    certificate = json.loads((release / "certificate.json").read_text())
    certificate["files"]["report.html"] = hashlib.sha256(report).hexdigest()
    (release / "certificate.json").write_text(json.dumps(certificate))
    files = {file.name: file.read_bytes() for file in release.iterdir() if file.name != SUMS}
    (release / SUMS).write_bytes(sums(files))
    answer = privimage("verify", release, "--store", finished_copy.folder, "--json")
    assert answer.code == 1
    failed = {check["step"]: check["why"] for check in json.loads(answer.out)["checks"] if check["outcome"] == "failed"}
    assert list(failed) == ["store", "private side"]
    assert "report.html refers to the private side, or is an internal report" in failed["private side"]
