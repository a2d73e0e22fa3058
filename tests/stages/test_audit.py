"""The audit stage: only if asked for, without a sensitive image, with bounds in the release, and an alarm that stops all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from privimage.errors import ConfigError, PrivacyRefused
from privimage.pipeline.table import stage_of, stages_of
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.running.runner import run_all
from privimage.stages.audit import mechanism_of
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import USUAL, Answer, Place

Command = Callable[..., Answer]
ASKED = ("audit.canaries=100", "audit.stand_ins=30")

# Typed Any: what is replaced in it is no part of its interface.
finetune: Any = import_module("privimage.generators.training.finetune")


def without_noise(patch: pytest.MonkeyPatch) -> None:
    def silent(clipped: Any, mechanism: DPSGDMechanism, random: Any) -> Any:
        return noisy_mean_gradient(clipped, replace(mechanism, noise_multiplier=1e-9), random)

    patch.setattr(finetune, "noisy_mean_gradient", silent)


@pytest.fixture(autouse=True)
def surer(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95 % a correct run may give an alarm now and then, as it should; here none may, and a missing noise still has to."""
    monkeypatch.setattr("privimage.privacy.audit.CONFIDENCE", 1 - 1e-6)


def test_only_a_run_that_asks_for_it_has_the_stage(finished: Place) -> None:
    plain, asked = finished.run().config, finished.run(*ASKED).config
    assert "audit" not in {stage.name for stage in stages_of(plain)}
    assert "audit" not in stage_of("release", plain).inputs
    assert [stage.name for stage in stages_of(asked) if stage.name not in USUAL] == ["audit"]
    assert "audit" in stage_of("release", asked).inputs
    with pytest.raises(ConfigError, match="Stage audit is no part of this run"):
        stage_of("audit", plain)
    with pytest.raises(ConfigError, match="needs at least 100"):
        finished.run("audit.canaries=99")


def test_it_gets_no_sensitive_image_and_is_charged_for_nothing(finished_copy: Place) -> None:
    stage = stage_of("audit", finished_copy.run(*ASKED).config)
    assert not any(stage_of(name, finished_copy.run().config).sealed for name in stage.inputs)
    assert stage.charge is None and not stage.sealed and not stage.opens
    before = finished_copy.entries
    run_all(finished_copy.run(*ASKED), "audit")
    assert finished_copy.entries == before


def test_it_audits_the_mechanism_that_ran_and_the_release_tells_the_bounds(
    privimage: Command, finished_copy: Place
) -> None:
    run = finished_copy.run(*ASKED, "audit.num_steps=2")
    results = run_all(run)
    assert [name for name, result in results.items() if not result.reused] == ["audit", "release"]
    told = open_ref(run.store, results["audit"].ref).read_json("audit.json")
    ran = mechanism_of(open_ref(run.store, results["finetune"].ref))
    audited = DPSGDMechanism(**told["mechanism"])
    assert (audited.noise_multiplier, audited.max_grad_norm) == (ran.noise_multiplier, ran.max_grad_norm)
    assert audited.sample_rate == pytest.approx(ran.sample_rate, rel=0.01)
    assert (audited.num_steps, audited.restart_allowance) == (2, 0)
    assert 100 < audited.num_images <= 130
    assert told["claimed"] == epsilon_of([audited.event], 1e-4)
    assert not told["alarm"]
    assert set(told) == {"kind", "about", "claimed", "delta", "canaries", "mechanism", "bounds", "alarm", "verdict"}
    assert [bound["name"].split(" (")[0] for bound in told["bounds"]] == [
        "Clopper-Pearson",
        "one run",
        "one run, f-DP",
        "Gaussian fit",
    ]
    folders = (finished_copy.folder / "releases").iterdir()
    (new,) = [folder for folder in folders if "Audit: epsilon is at least" in (folder / "report.html").read_text()]
    verified = privimage("verify", new, "--store", finished_copy.folder)
    assert verified.code == 0, verified.out


def test_an_alarm_ends_the_run_before_anything_is_released(
    finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_noise(monkeypatch)
    before = sorted(finished_copy.folder.glob("releases/*")), sorted(finished_copy.folder.glob("artifacts/audit/*"))
    with pytest.raises(PrivacyRefused, match="The claim is refuted: .* but .* is claimed"):
        run_all(finished_copy.run(*ASKED))
    assert before == (
        sorted(finished_copy.folder.glob("releases/*")),
        sorted(finished_copy.folder.glob("artifacts/audit/*")),
    )


# ------------------------------------------------------------------ privimage audit


def test_the_command_audits_the_mechanism_that_ran_and_spends_nothing(privimage: Command, finished: Place) -> None:
    before = finished.entries
    answer = privimage("audit", *finished.options(), "--canaries", "100")
    assert answer.code == 0, answer.err
    noise = json.loads(finished.payload("finetune", "generator.json").read_text())["mechanism"]["noise_multiplier"]
    assert f"noise multiplier {noise:.4g}" in answer.out
    assert "4 steps; 100 canaries" in answer.out
    for name in ("Clopper-Pearson", "Steinke", "Mahloujifar", "Gaussian fit", "heuristic"):
        assert name in answer.out
    assert "No bound contradicts the claimed epsilon" in answer.out
    told = json.loads(privimage("audit", *finished.options(), "--canaries", "100", "--json", "--steps", "2").out)
    assert told["mechanism"]["num_steps"] == 2
    assert finished.entries == before


def test_before_a_run_the_planned_mechanism_is_audited(privimage: Command, granted_copy: Place) -> None:
    before = granted_copy.entries
    answer = privimage("audit", *granted_copy.options(), "--canaries", "100")
    assert answer.code == 0, answer.err
    assert "4 steps; 100 canaries" in answer.out
    assert granted_copy.entries == before


def test_the_command_says_so_in_one_sentence_and_an_exit_code_when_the_claim_is_refuted(
    privimage: Command, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_noise(monkeypatch)
    answer = privimage("audit", *finished.options(), "--canaries", "100")
    assert answer.code == 3
    assert answer.complaint.startswith("privimage: The claim is refuted: ")
    assert "Release nothing that this mechanism made." in answer.complaint
    assert "Clopper-Pearson" in answer.out, "the table is printed all the same"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--canaries", "99"), "at least 100 canaries, found 99"),
        (("--steps", "0"), "--steps 0: expected at least 1"),
    ],
)
def test_bad_options_are_refused(privimage: Command, finished: Place, options: tuple[str, ...], complaint: str) -> None:
    answer = privimage("audit", *finished.options(), *options)
    assert answer.code == 2
    assert complaint in answer.complaint
