"""What `evaluate` says about safety stays inside: numbers, reasons, and the pairs with their training images."""

from __future__ import annotations

import json
import re

import pytest

from privimage.evaluation import membership
from privimage.running.runner import run_all
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import Place


def test_memorization_is_measured_on_pixels_and_features_and_its_pairs_are_shown_in_the_internal_report(
    finished: Place,
) -> None:
    metrics = json.loads(finished.payload("evaluate", "metrics.json").read_text())
    assert metrics["kind"] == "internal"
    found = metrics["safety"]["memorization"]
    assert set(found) == {"pixels", "public-classifier"}
    for each in found.values():
        assert 0 <= each["share_nearer_to_training"] <= 1
        assert 0 < each["p_value"] <= 1
        assert len(each["pairs"]) == 8
    report = finished.payload("evaluate", "internal.html").read_text()
    assert "Nearest pairs" in report
    assert "Nearer to a training than to a test image" in report
    safety = report.partition("<h2>Safety</h2>")[2].partition("</section>")[0]
    kinds = re.findall(r'<th scope="row">[^<]*<small>(\w+) · ', safety)
    assert len(kinds) > 4 and set(kinds) == {"internal"}


def test_with_too_few_test_images_an_attack_is_a_sentence_that_says_how_many_are_needed(finished: Place) -> None:
    metrics = json.loads(finished.payload("evaluate", "metrics.json").read_text())
    reason = metrics["not_computed"]["membership inference"]
    assert reason.startswith("Membership inference needs at least 100 training and 100 test images, found 144 and ")
    assert "membership" not in metrics["safety"]
    assert "needs at least 100 training" in finished.payload("evaluate", "internal.html").read_text()


def test_with_enough_images_the_attack_is_made_by_the_loss_and_by_what_fine_tuning_changed(
    finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "LEAST", 10)
    run = finished_copy.run(draws={"evaluate": 2})
    ref = run_all(run, "evaluate")["evaluate"].ref
    assert ref.sealed
    evaluated = open_ref(run.store, ref)
    metrics = evaluated.read_json("metrics.json")
    attacks = metrics["safety"]["membership"]
    assert set(attacks) == {"loss", "loss, less that of the pre-trained generator"}
    for found in attacks.values():
        assert found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"]
        assert (found["members"], found["others"]) == (144, 36)
    assert attacks["loss"] != attacks["loss, less that of the pre-trained generator"]
    assert "membership inference" not in metrics["not_computed"]
    assert finished_copy.kinds == ["grant", "reserve query", "settle", "reserve finetune", "settle"]


def test_nothing_of_it_is_in_the_release(finished: Place) -> None:
    for file in finished.release.iterdir():
        content = file.read_bytes()
        for words in (b"Nearest pairs", b"Nearer to a training", b"Membership inference", b"memorization"):
            assert words not in content, file.name
