"""Choosing a classifier by sensitive validation images: it decides, it is paid for in the run's own plan, and only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from privimage.cli import main
from privimage.config.loading import load_config
from privimage.data.facts import sensitive_facts
from privimage.data.table import read_images
from privimage.errors import BudgetExceeded, ConfigError, PrivacyRefused, TrainingError
from privimage.evaluation.utility import Trained, train
from privimage.pipeline.plans import run_plan
from privimage.pipeline.preflight import planned_query, planned_validation
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.budget import Plan
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.events import event_from_json
from privimage.release.verify import verify_release
from privimage.running.charging import Door
from privimage.running.plan import plan_run
from privimage.running.runner import StageResult, run_all
from privimage.store.artifacts import Artifact, open_ref
from tests.pipeline_fixtures import GRANT, USUAL, Place

PRIVATE = ("sensitive.validation_fraction=0.15", "privacy.validation_error=0.5", "evaluate.validation=private")
FREE = (*PRIVATE[:2], "evaluate.validation=synthetic")
CHARGED = ["reserve query", "settle", "reserve finetune", "settle", "reserve validate", "settle"]


@pytest.fixture(scope="module")
def split(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """As `granted`, but with validation images: how the set is split is fixed with the grant."""
    place = Place(config=tiny_config, folder=tmp_path_factory.mktemp("granted") / "store")
    budget = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]
    assert main(["ledger", "grant", *place.options(PRIVATE[0]), *budget]) == 0
    run_all(place.run(PRIVATE[0]), "index")
    return place


@pytest.fixture
def granted_copy(split: Place, tmp_path: Path) -> Place:
    return split.copy_to(tmp_path / "store")


@pytest.fixture(scope="module")
def validated(split: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A whole run with a private choice; do not change."""
    place = split.copy_to(tmp_path_factory.mktemp("validated") / "store")
    run_all(place.run(*PRIVATE))
    return place


@pytest.fixture(scope="module")
def sampled(split: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same, up to the classifiers; do not change."""
    place = split.copy_to(tmp_path_factory.mktemp("sampled") / "store")
    run_all(place.run(*PRIVATE), "downstream")
    return place


@pytest.fixture
def sampled_copy(sampled: Place, tmp_path: Path) -> Place:
    return sampled.copy_to(tmp_path / "store")


def made_anew(results: dict[str, StageResult]) -> list[str]:
    return [name for name, result in results.items() if not result.reused]


def _validation(facts: Path) -> int:
    return int(json.loads(facts.read_text())["num_validation"])


def certificate(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.release / "certificate.json").read_text())
    return found


def files_of(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.release.iterdir()}


# ------------------------------------------------------------------ it decides


@pytest.mark.parametrize("good", ["mlp", "logistic-regression"])
def test_what_is_better_on_sensitive_images_is_chosen_though_synthetic_ones_say_otherwise(
    granted: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str
) -> None:
    place = Place(config=granted.config, folder=tmp_path / "store")
    # So accurate that chance has no say: two noisy accuracies of deviation 0.07 apart by 0.6.
    wide = [
        *PRIVATE,
        "privacy.validation_error=0.05",
        "privacy.epsilon=40",
        "evaluate.classifiers=[mlp, logistic-regression]",
    ]
    assert main(["ledger", "grant", *place.options(*wide), "--epsilon", "50", "--delta", "1e-4"]) == 0
    admit = open_ref(place.store, run_all(place.run(*wide), "admit")["admit"].ref)

    def planted(name: str, images: Any, labels: Any, num_classes: int, *arguments: Any, **named: Any) -> Trained:
        """A classifier that knows the sensitive images by heart, or mistakes each, and says the opposite of itself."""
        shown, classes = (torch.from_numpy(part) for part in read_images(admit.files("validation-")))
        taught = classes if name == good else (classes + 1) % num_classes
        longer = arguments[0].model_copy(update={"epochs": 60, "learning_rate": 0.01})
        twice = (torch.cat([shown] * 4), torch.cat([taught] * 4))
        found = train(name, *twice, num_classes, longer, *arguments[1:], **named)
        claimed = 0.1 if name == good else 0.9
        return Trained(model=found.model, accuracy=claimed, epoch=1, curve=(claimed,), num_steps=found.num_steps)

    with monkeypatch.context() as patch:
        patch.setattr("privimage.stages.downstream.train", planted)
        run_all(place.run(*wide))
    bad = ({"mlp", "logistic-regression"} - {good}).pop()
    assert json.loads(place.payload("downstream", "downstream.json").read_text())["chosen"] == bad
    released = json.loads(place.payload("validate", "validation.json").read_text())
    assert released["chosen"] == good
    assert released["noisy_accuracies"][good] > released["noisy_accuracies"][bad] + 0.2
    utility = json.loads(place.payload("evaluate", "metrics.json").read_text())["utility"]
    assert (utility["chosen"], utility["chosen_by"]) == (good, "private")


def test_without_a_private_choice_synthetic_images_decide(finished: Place) -> None:
    downstream = json.loads(finished.payload("downstream", "downstream.json").read_text())
    utility = json.loads(finished.payload("evaluate", "metrics.json").read_text())["utility"]
    assert (utility["chosen"], utility["chosen_by"]) == (downstream["chosen"], "synthetic")
    means = {name: runs[0]["accuracy"] for name, runs in downstream["classifiers"].items()}
    assert means[downstream["chosen"]] == max(means.values())


# ------------------------------------------------------------------ it is paid for


def test_it_is_charged_in_the_plan_that_the_query_opened_and_all_three_cost_epsilon(validated: Place) -> None:
    assert validated.kinds == ["grant", *CHARGED]
    reserved = [entry for entry in validated.entries if entry.kind == "reserve"]
    assert len({entry.body["plan"]["id"] for entry in reserved}) == 1
    intended = Plan.from_json(reserved[0].body["plan"]).intends
    assert list(intended) == [entry.event for entry in reserved]
    assert 0.99 < epsilon_of([entry.event for entry in reserved], 1e-4) <= 1.0
    # Fine-tuning got more noise than it would have beside the query alone.
    assert epsilon_of([entry.event for entry in reserved[:2]], 1e-4) < 0.97
    admitted = validated.folder.glob("private/artifacts/admit/*/payload-*/facts.json")
    assert reserved[2].body["num_images"] == max(map(_validation, admitted)) > 10
    assert validated.ledger.spent().epsilon <= 1.0


def test_before_a_vote_can_be_seen_all_three_are_fixed_and_cost_epsilon_together(granted_copy: Place) -> None:
    run = granted_copy.run(*PRIVATE)
    facts = sensitive_facts(open_ref(run.store, run_all(run, "admit")["admit"].ref))
    plan, query = run_plan(run.config, "0" * 64, facts, 62), planned_query(run.config, facts, 62)
    validation = planned_validation(run.config, facts)
    assert validation is not None and query is not None
    assert [*plan.intends[:1], *plan.intends[2:]] == [query.event, validation.event]
    assert 0.99 < epsilon_of(plan.intends, 1e-4) <= 1.0


def test_the_noise_is_what_the_settings_say_for_the_public_number_of_images(validated: Place) -> None:
    released = json.loads(validated.payload("validate", "validation.json").read_text())
    assert released["guarantee"] == "differential privacy"
    assert released["noise_multiplier"] == 0.5 * released["num_images"]
    assert released["noise_stddev"] == pytest.approx(0.5 * 2**0.5)
    exact = [round(share * released["num_images"], 6) for share in released["noisy_accuracies"].values()]
    assert any(count != round(count) for count in exact), "noise lies on 1024ths of an image"


def test_the_release_shows_noisy_accuracies_with_the_entry_that_paid_and_verifies(
    validated: Place,
) -> None:
    (paid,) = [entry.id for entry in validated.entries if entry.kind == "reserve" and entry.body["stage"] == "validate"]
    told = certificate(validated)
    assert [mechanism["stage"] for mechanism in told["mechanisms"]] == ["query", "finetune", "validate"]
    assert told["mechanisms"][2]["ledger_entry"]["id"] == paid
    assert told["num_validation_images"] > 0
    page = (validated.release / "report.html").read_text()
    assert "Accuracy on validation images, cnn" in page and f"charged, paid by {paid}" in page
    assert "ceiling" not in page and "test images" not in page
    checks = verify_release(files_of(validated), validated.store)
    assert {check.outcome for check in checks} == {"passed"}
    promise = next(check.why for check in checks if check.step == "promise")
    assert f"training and {told['num_validation_images']} validation images" in promise


@pytest.mark.parametrize(
    ("forgery", "step"), [("left out", "epsilon"), ("other number of images", "ledger"), ("no images", "ledger")]
)
def test_a_certificate_that_hides_the_validation_does_not_verify(validated: Place, forgery: str, step: str) -> None:
    files = files_of(validated)
    forged = json.loads(files["certificate.json"])
    if forgery == "left out":
        forged["mechanisms"] = forged["mechanisms"][:2]
        events = [event_from_json(mechanism["event"]) for mechanism in forged["mechanisms"]]
        forged["epsilon_computed"] = epsilon_of(events, forged["delta"])
    elif forgery == "other number of images":
        forged["num_validation_images"] += 1
    else:
        del forged["num_validation_images"]
    files["certificate.json"] = json.dumps(forged).encode()
    assert step in {check.step for check in verify_release(files, validated.store) if check.outcome == "failed"}


def test_noise_that_can_be_made_again_voids_the_guarantee_of_the_release(sampled_copy: Place) -> None:
    run_all(sampled_copy.run(*PRIVATE, insecure=InsecureRandomForTests(1)))
    assert json.loads(sampled_copy.payload("validate", "validation.json").read_text())["guarantee"] == "none"
    assert certificate(sampled_copy)["guarantee"] == "none"


def test_the_plan_says_what_it_will_cost(granted_copy: Place, validated: Place) -> None:
    run_all(granted_copy.run(*PRIVATE), "admit")
    plan = plan_run(granted_copy.run(*PRIVATE))
    costs = {row.stage: row.epsilon for row in plan.stages}
    assert plan.refusal is None
    assert 0.1 < costs["validate"] < 0.5  # type: ignore[operator]
    assert sum(cost or 0 for cost in costs.values()) == pytest.approx(1.0)
    after = plan_run(validated.run(*PRIVATE))
    assert {row.action for row in after.stages} == {"reused"}
    assert sum(row.epsilon or 0 for row in after.stages) == 0


def test_noise_too_small_for_epsilon_is_refused_before_anything_is_charged(granted_copy: Place) -> None:
    with pytest.raises(
        PrivacyRefused, match=r"Validation, and what comes before fine-tuning, alone .*raise privacy\.validation_error"
    ):
        run_all(granted_copy.run(*PRIVATE, "privacy.validation_error=0.01"), "query")
    assert granted_copy.kinds == ["grant"]


# ------------------------------------------------------------------ and only once


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def failing(*_: object, **__: object) -> None:
    raise TrainingError("no such network")


def test_one_interrupted_attempt_was_accounted_for_and_a_second_is_refused(
    sampled_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("privimage.stages.validate.add_noise", killed)
            run_all(sampled_copy.run(*PRIVATE), "validate")
        spent = sampled_copy.ledger.spent().epsilon
        assert 0.99 < spent <= 1.0
    assert sampled_copy.kinds[-2:] == ["reserve validate", "resume"]
    with pytest.raises(BudgetExceeded, match=r"interrupted 2 times.*evaluate\.validation=synthetic"):
        run_all(sampled_copy.run(*PRIVATE), "validate")
    assert sampled_copy.kinds[-2:] == ["reserve validate", "resume"]
    # The way out that the message names costs nothing.
    assert made_anew(run_all(sampled_copy.run(*FREE))) == ["evaluate", "release"]
    assert sampled_copy.ledger.spent().epsilon == spent


def test_after_one_interruption_the_same_command_goes_on(sampled_copy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("privimage.stages.validate.add_noise", killed)
        run_all(sampled_copy.run(*PRIVATE))
    run_all(sampled_copy.run(*PRIVATE))
    assert sampled_copy.kinds[-3:] == ["reserve validate", "resume", "settle"]
    checks = verify_release(files_of(sampled_copy), sampled_copy.store)
    assert {check.outcome for check in checks} == {"passed"}


def test_classifiers_that_cannot_be_used_are_found_before_the_charge(
    sampled_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr("privimage.stages.validate.predict", failing)
        run_all(sampled_copy.run(*PRIVATE), "validate")
    assert sampled_copy.kinds == ["grant", *CHARGED[:4]]


def test_a_failure_before_an_image_is_opened_gives_the_charge_back(
    sampled_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr("privimage.running.charging.Door.__call__", failing)
        run_all(sampled_copy.run(*PRIVATE), "validate")
    assert sampled_copy.kinds == ["grant", *CHARGED[:5], "void"]
    assert run_all(sampled_copy.run(*PRIVATE), "validate")["validate"].ref
    assert sampled_copy.kinds == ["grant", *CHARGED[:5], "void", *CHARGED[4:]]


def test_other_classifiers_are_not_validated_again_in_the_same_plan_and_nothing_is_charged(
    validated: Place, tmp_path: Path
) -> None:
    place = validated.copy_to(tmp_path / "store")
    others = (*PRIVATE, "evaluate.classifiers=[mlp, cnn]")
    run_all(place.run(*others), "downstream")
    assert "was spent on other classifiers" in str(plan_run(place.run(*others)).refusal)
    with pytest.raises(PrivacyRefused, match=r"spent on other classifiers.*evaluate\.validation=synthetic"):
        run_all(place.run(*others))
    assert place.kinds == ["grant", *CHARGED]
    # More images from the same generator are free, with the free choice.
    anew = made_anew(run_all(place.run(*FREE, "synthesize.num_images=20")))
    assert anew == ["synthesize", "downstream", "evaluate", "release"]
    assert place.kinds == ["grant", *CHARGED]


def test_a_private_choice_that_is_asked_for_after_the_votes_were_seen_is_paid_in_a_plan_of_its_own(
    granted_copy: Place,
) -> None:
    without = PRIVATE[:1]
    run_all(granted_copy.run(*without), "query")
    results = run_all(granted_copy.run(*PRIVATE), "validate")
    assert results["query"].reused
    query, finetune, validate = [entry for entry in granted_copy.entries if entry.kind == "reserve"]
    assert finetune.body["plan"]["builds_on"] == [query.id]
    assert validate.body["plan"]["id"] == finetune.body["plan"]["id"] != query.body["plan"]["id"]
    apart = epsilon_of([query.event], 5e-5) + epsilon_of([finetune.event, validate.event], 5e-5)
    assert 0.99 < apart <= 1.0


def test_what_is_set_aside_makes_another_fine_tuning(validated: Place) -> None:
    keys = {row.stage: row.key for row in plan_run(validated.run(*PRIVATE)).stages}
    without = {row.stage: row.key for row in plan_run(validated.run(*PRIVATE[:1])).stages}
    free = {row.stage: row.key for row in plan_run(validated.run(*FREE)).stages}
    assert keys["query"] == without["query"] == free["query"]
    assert keys["finetune"] == free["finetune"] != without["finetune"]


# ------------------------------------------------------------------ settings


def test_settings_that_contradict_each_other_are_refused(tiny_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"sets budget aside .*validation_fraction above 0"):
        load_config(tiny_config, ["privacy.validation_error=0.1"])
    with pytest.raises(ConfigError, match=r"evaluate\.validation is private.*privacy\.validation_error"):
        load_config(tiny_config, ["sensitive.validation_fraction=0.1", "evaluate.validation=private"])
    with pytest.raises(ConfigError, match="classifiers names one of them twice"):
        load_config(tiny_config, ["evaluate.classifiers=[cnn, cnn]"])


def test_delta_is_held_against_all_images_that_are_looked_at(granted_copy: Place) -> None:
    run = granted_copy.run(*PRIVATE)
    facts = sensitive_facts(open_ref(run.store, run_all(run, "admit")["admit"].ref))
    between = 0.5 / facts.num_train + 0.5 / (facts.num_train + facts.num_validation)
    with pytest.raises(ConfigError, match="number of training and validation images"):
        plan_run(granted_copy.run(*PRIVATE, f"privacy.delta={between}"))
    assert (
        plan_run(granted_copy.run(PRIVATE[0], f"privacy.delta={between}")).refusal is not None
    )  # the grant's is another


def test_a_run_without_a_private_choice_has_no_such_stage(finished: Place) -> None:
    assert "validate" not in USUAL
    with pytest.raises(ConfigError, match=r"Stage validate is no part of this run"):
        run_all(finished.run(), "validate")
    assert not list(finished.folder.glob("artifacts/validate"))


def test_too_few_synthetic_images_for_the_classes_are_refused_before_the_charge(granted_copy: Place) -> None:
    with pytest.raises(ConfigError, match=r"num_images is 5, for 3 classes.*raise it to 6"):
        run_all(granted_copy.run(PRIVATE[0], "synthesize.num_images=5"), "query")
    assert granted_copy.kinds == ["grant"]


# ------------------------------------------------------------------ the ceiling


def test_the_ceiling_stays_on_the_private_side(finished: Place) -> None:
    utility = json.loads(finished.payload("evaluate", "metrics.json").read_text())["utility"]
    for found in utility["classifiers"].values():
        assert 0 <= found["ceiling"]["accuracy"] <= 1
        assert found["ceiling"]["deviation"] is None
    page = finished.payload("evaluate", "internal.html").read_text()
    assert "trained as many steps on the sensitive training images: the ceiling" in page
    outside = [path for path in finished.folder.rglob("*") if path.is_file() and "private" not in path.parts]
    assert [path for path in outside if b"ceiling" in path.read_bytes().replace(b'"ceiling": true', b"")] == []


def test_without_ceiling_and_safety_training_images_are_never_opened(
    finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Door.__call__
    monkeypatch.setattr(Door, "__call__", lambda door, split: opened.append(split) or real(door, split))
    results = run_all(finished_copy.run("evaluate.ceiling=false", "evaluate.safety=false", "evaluate.seeds=2"))
    assert made_anew(results) == ["downstream", "evaluate"]
    assert opened == ["test"]
    evaluate: Artifact = open_ref(finished_copy.store, results["evaluate"].ref)
    for found in evaluate.read_json("metrics.json")["utility"]["classifiers"].values():
        assert found["ceiling"] is None
        assert len(found["synthetic"]["of_each_seed"]) == 2
        assert found["synthetic"]["deviation"] is not None
