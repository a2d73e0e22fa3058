"""Class mean images in a run: what is paid and when, what leaves, and that the generator's lineage is accounted for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from privimage.data.facts import SensitiveFacts
from privimage.errors import ConfigError, DataError, PrivacyRefused, Stopped, TrainingError, Uncharged
from privimage.generators.diffusion.warmup import warm_up
from privimage.generators.training.pretrain import PretrainState
from privimage.pipeline.plans import ahead_plan, finetune_plan, planned_finetune, run_plan
from privimage.pipeline.preflight import planned_class_means, planned_query
from privimage.pipeline.table import stage_of
from privimage.privacy.accounting import epsilon_of, epsilon_of_plan
from privimage.privacy.budget import Plan
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.release.export import SUMS, sums
from privimage.release.verify import read_release, verify_release
from privimage.running.plan import plan_run
from privimage.running.runner import run_all, run_stage
from privimage.store.artifacts import Artifact, list_artifacts
from privimage.store.files import Store
from tests.pipeline_fixtures import USUAL, Place
from tests.release.example import hide

MEANS = ("generator.class_means.num_steps=4", "generator.class_means.batch_size=16")
NONE = (*MEANS, "selection.strategy=none")
CHARGED = ["reserve query", "settle", "reserve class_means", "settle", "reserve finetune", "settle"]


@pytest.fixture(scope="module")
def with_means(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run with class mean images; do not change."""
    place = granted.copy_to(tmp_path_factory.mktemp("class_means") / "store")
    run_all(place.run(*MEANS))
    return place


@pytest.fixture(scope="module")
def alone(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One without public pre-training; do not change."""
    place = granted.copy_to(tmp_path_factory.mktemp("alone") / "store")
    run_all(place.run(*NONE))
    return place


def artifacts(place: Place) -> dict[str, Artifact]:
    return {artifact.ref.stage: artifact for artifact in list_artifacts(place.store)}


def reserved(place: Place) -> dict[str, Any]:
    return {entry.body["stage"]: entry for entry in place.entries if entry.kind == "reserve"}


def outcomes(place: Place) -> dict[str, str]:
    checks = verify_release(read_release(Store.open(str(place.release))), place.store, place.run(*MEANS).config)
    return {check.step: check.outcome for check in checks}


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------ what is paid


def test_query_class_mean_images_and_fine_tuning_are_one_plan_that_costs_the_runs_epsilon(with_means: Place) -> None:
    assert with_means.kinds == ["grant", *CHARGED]
    entries = reserved(with_means)
    events = [entry.event for entry in entries.values()]
    (plan,) = {entry.body["plan"]["id"] for entry in entries.values()}
    assert list(Plan.from_json(entries["query"].body["plan"]).intends) == events
    assert 0.99 < epsilon_of(events, 1e-4) <= 1.0
    assert [spent.id for spent in with_means.ledger.spent().plans] == [plan]


def test_without_a_query_class_mean_images_open_the_plan(alone: Place) -> None:
    assert alone.kinds == ["grant", *CHARGED[2:]]
    entries = reserved(alone)
    assert 0.99 < epsilon_of([entry.event for entry in entries.values()], 1e-4) <= 1.0
    assert entries["class_means"].body["plan"] == entries["finetune"].body["plan"]


def test_what_they_open_without_a_query_is_a_plan_that_costs_the_runs_epsilon(granted: Place) -> None:
    run = granted.run(*NONE)
    facts = SensitiveFacts.from_json(artifacts(granted)["admit"].read_bytes("facts.json").decode())
    plan, mechanism = run_plan(run.config, "0" * 64, facts, 10), planned_class_means(run.config, facts)
    assert mechanism is not None
    assert plan.intends == (mechanism.event, planned_finetune(run.config, facts, 10).event)
    assert ahead_plan("class_means", mechanism, run.config, "0" * 64, [], facts, granted.ledger, 10) == plan
    assert 0.99 < epsilon_of(plan.intends, plan.delta) <= 1.0


@pytest.mark.parametrize("overrides", [MEANS, NONE], ids=["semantic", "none"])
def test_those_that_leave_nothing_for_fine_tuning_are_named(overrides: tuple[str, ...], granted: Place) -> None:
    refusal = str(plan_run(granted.run(*overrides, "privacy.class_means_noise_multiplier=2")).refusal)
    assert "privacy.class_means_noise_multiplier" in refusal and "query alone" not in refusal


def test_what_they_cost_is_not_left_for_fine_tuning(with_means: Place, finished: Place) -> None:
    more, less = (artifacts(place)["finetune"].manifest.metrics["noise_multiplier"] for place in (with_means, finished))
    assert more > less  # type: ignore[operator]


@pytest.mark.parametrize("overrides", [MEANS, NONE], ids=["semantic", "none"])
def test_the_plan_foresees_it(overrides: tuple[str, ...], granted: Place, request: pytest.FixtureRequest) -> None:
    planned = plan_run(granted.run(*overrides))
    costs = {row.stage: row.epsilon for row in planned.stages if row.epsilon}
    assert set(costs) == {"class_means", "finetune"} | ({"query"} if overrides == MEANS else set())
    assert sum(costs.values()) == pytest.approx(1.0)
    assert planned.refusal is None
    place: Place = request.getfixturevalue("with_means" if overrides == MEANS else "alone")
    after = plan_run(place.run(*overrides))
    assert {row.action for row in after.stages} == {"reused"}
    assert after.share_asked == 0


def test_nothing_is_opened_before_it_is_charged(granted_copy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(granted_copy.run(*MEANS), "query")
    seen = []

    def failing(*_: object, **__: object) -> None:
        seen.append(granted_copy.kinds[-1])
        raise TrainingError("closed")

    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr("privimage.running.charging.Door.__call__", failing)
        run_all(granted_copy.run(*MEANS), "class_means")
    assert seen == ["reserve class_means"]
    # It was never opened: what was reserved is given back.
    assert granted_copy.kinds[-1] == "void"
    run_all(granted_copy.run(*MEANS), "class_means")
    assert granted_copy.kinds[-2:] == CHARGED[2:4]


def test_public_images_that_bound_nothing_are_found_before_the_charge(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def equal(*_: object) -> float:
        raise DataError("all equal")

    run_all(granted_copy.run(*MEANS), "query")
    before = granted_copy.kinds
    monkeypatch.setattr("privimage.stages.class_means.largest_norm", equal)
    with pytest.raises(DataError):
        run_all(granted_copy.run(*MEANS), "class_means")
    assert granted_copy.kinds == before


@pytest.mark.parametrize("overrides", [MEANS, NONE], ids=["semantic", "none"])
def test_a_result_that_was_lost_is_charged_again_within_the_runs_epsilon(
    overrides: tuple[str, ...], granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("privimage.stages.class_means.noisy_class_sums", killed)
        run_all(granted_copy.run(*overrides), "class_means")
    run_all(granted_copy.run(*overrides))
    first = CHARGED[:2] if overrides == MEANS else []
    assert granted_copy.kinds == [
        *("grant", *first, "reserve class_means", "reserve class_means", "settle", "settle", *CHARGED[4:])
    ]
    events = [entry.event for entry in granted_copy.entries if entry.kind == "reserve"]
    assert events.count(reserved(granted_copy)["class_means"].event) == 2
    assert 0.99 < epsilon_of_plan(events, [], 1e-4, lost=1) <= 1.0
    certificate = json.loads((granted_copy.release / "certificate.json").read_text())
    assert len(certificate["mechanisms"]) == len(events)
    checks = verify_release(read_release(Store.open(str(granted_copy.release))), granted_copy.store)
    assert {check.outcome for check in checks} == {"passed"}


def test_other_class_mean_images_are_not_charged_to_the_same_plan(with_means: Place, tmp_path: Path) -> None:
    place = with_means.copy_to(tmp_path / "store")
    other = (*MEANS, "generator.class_means.max_norm=3.5")
    assert "no budget for these class mean images" in str(plan_run(place.run(*other)).refusal)
    with pytest.raises(PrivacyRefused, match=r"other ones were charged to it.*--draw query=2"):
        run_all(place.run(*other))
    assert place.kinds == ["grant", *CHARGED]
    # The way out that the message names.
    run_all(place.run(*other, draws={"query": 2}), "class_means")
    assert place.kinds == ["grant", *CHARGED, *CHARGED[:4]]


def test_fine_tuning_after_class_mean_images_of_another_plan_than_the_querys_builds_on_both(
    granted_copy: Place,
) -> None:
    run, ledger = granted_copy.run(*MEANS), granted_copy.ledger
    facts = SensitiveFacts.from_json(artifacts(granted_copy)["admit"].read_bytes("facts.json").decode())
    paid = []
    alone = granted_copy.run(*NONE).config
    for stage, key, plan, mechanism in (
        ("query", "1" * 64, run_plan(run.config, "1" * 64, facts, 10), planned_query(run.config, facts, 10)),
        ("class_means", "2" * 64, run_plan(alone, "2" * 64, facts, 10), planned_class_means(alone, facts)),
    ):
        assert mechanism is not None
        entry = ledger.reserve(
            stage=stage, key=key, event=mechanism.event, plan=plan, num_images=facts.num_train, run="tiny"
        )
        paid.append(entry.id)
    plan, _ = finetune_plan(run.config, "3" * 64, paid, facts, ledger)
    assert list(plan.builds_on) == paid


def test_another_warm_up_costs_nothing_but_its_own_fine_tuning_builds_on_what_was_seen(
    with_means: Place, tmp_path: Path
) -> None:
    place = with_means.copy_to(tmp_path / "store")
    other = (*MEANS, "generator.class_means.learning_rate=2e-3")
    results = run_all(place.run(*other), "warmup")
    assert not results["warmup"].reused
    assert place.kinds == ["grant", *CHARGED]
    run_all(place.run(*other), "finetune")
    query, summed, _, second = [entry for entry in place.entries if entry.kind == "reserve"]
    assert second.body["plan"]["builds_on"] == [query.id, summed.id]


def test_of_another_epsilon_fine_tuning_alone_is_charged_in_a_plan_that_builds_on_both(
    with_means: Place, tmp_path: Path
) -> None:
    place = with_means.copy_to(tmp_path / "store")
    config = (*MEANS, "privacy.epsilon=1.2", "name=dearer")
    results = run_all(place.run(*config))
    assert results["query"].reused and results["class_means"].reused and not results["finetune"].reused
    entry = [entry for entry in place.entries if entry.kind == "reserve"][-1]
    assert len(entry.body["plan"]["builds_on"]) == 2
    (folder,) = (folder for folder in (place.folder / "releases").iterdir() if "dearer" in folder.name)
    checks = verify_release(read_release(Store.open(str(folder))), place.store)
    assert {check.outcome for check in checks} == {"passed"}


# ------------------------------------------------------------------ what leaves


@pytest.mark.parametrize("which", ["with_means", "alone"])
def test_its_release_lists_them_and_is_verified_in_every_step(which: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(which)
    certificate = json.loads((place.release / "certificate.json").read_text())
    stages = [mechanism["stage"] for mechanism in certificate["mechanisms"]]
    assert stages == (["query"] if which == "with_means" else []) + ["class_means", "finetune"]
    assert certificate["guarantee"] == "differential privacy"
    expected = {"passed"} if which == "with_means" else {"passed", "failed"}
    found = outcomes(place)
    assert {found.pop("configuration"), "passed"} == expected
    assert set(found.values()) == {"passed"}
    report = (place.release / "report.html").read_text()
    assert "Noise of the class mean images" in report
    assert "warm-up" in report


def test_exact_sums_are_nowhere_and_what_was_released_says_how_noisy_it_is(with_means: Place) -> None:
    made = artifacts(with_means)["class_means"]
    released = made.read_json("class_means.json")
    assert sorted(made.names) == ["class_means.json", "class_means.png", "class_means.safetensors"]
    means = load_file(made.local("class_means.safetensors"))["means"]
    assert means.shape == (3, 1, 8, 8) and bool(means.isfinite().all())
    assert released["class_sizes_are"] == "of the noisy votes"
    stddev = released["noise_multiplier"] * released["max_norm"] / np.array(released["class_sizes"])
    assert released["noise_in_means"] == pytest.approx(stddev.tolist())
    # The images are noise around gray: the means are as far from the public mean as the noise is large, and not exact.
    spread = means.flatten(1).double().std(dim=1).numpy()
    assert np.all((spread / stddev > 0.5) & (spread / stddev < 2))


def test_reproducible_noise_leaves_no_guarantee(granted_copy: Place) -> None:
    run_all(granted_copy.run(*NONE, insecure=InsecureRandomForTests(0)), "class_means")
    run_all(granted_copy.run(*NONE))
    stated = json.loads((granted_copy.release / "certificate.json").read_text())
    assert stated["guarantee"] == "none"
    assert artifacts(granted_copy)["finetune"].read_json("generator.json")["guarantee"] == "none"


def test_no_certificate_leaves_them_out(with_means: Place, tmp_path: Path) -> None:
    place = with_means.copy_to(tmp_path / "store")
    made = run_all(place.run(*MEANS))
    run = place.run()
    inputs = {name: made[name].ref for name in stage_of("release", run.config).inputs}
    with pytest.raises(PrivacyRefused, match=r"after the class_means of entry .* no certificate leaves it out"):
        run_stage("release", run, inputs)


def test_a_certificate_that_hides_them_does_not_verify(with_means: Place, tmp_path: Path) -> None:
    def forged(name: str, change: Callable[[dict[str, Any]], object]) -> dict[str, str]:
        folder = Path(shutil.copytree(with_means.release, tmp_path / name))
        stated = json.loads((folder / "certificate.json").read_text())
        hide(stated, "class_means")
        change(stated)
        (folder / "certificate.json").write_text(json.dumps(stated, indent=1, sort_keys=True))
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != SUMS}
        (folder / SUMS).write_bytes(sums(files))
        checks = verify_release(read_release(Store.open(str(folder))), with_means.store)
        return {check.step: check.why for check in checks if check.outcome == "failed"}

    assert set(forged("half", lambda stated: None)) == {"epsilon", "ledger", "store"}
    whole = forged("whole", lambda stated: stated.pop("class_mean_images"))
    assert set(whole) == {"ledger", "store"}
    assert "is a class_means of the same plan, of which nothing is said" in whole["ledger"]


def test_a_generator_that_goes_back_to_them_is_not_fine_tuned_as_if_there_had_been_none(
    alone: Place, tmp_path: Path
) -> None:
    place = alone.copy_to(tmp_path / "store")
    made = run_all(place.run(*NONE))
    before = place.kinds
    inputs = {"admit": made["admit"].ref, "pretrain": made["warmup"].ref}
    with pytest.raises(Uncharged, match=r"goes back to class_means \w{12}.* accounts for no class_means"):
        run_stage("finetune", place.run("selection.strategy=none"), inputs)
    assert place.kinds == before


# ------------------------------------------------------------------ runs without them, and settings


def test_a_run_without_them_has_neither_stage_and_none_of_their_fields(finished: Place) -> None:
    config = finished.run().config
    assert not {"class_means", "warmup"} & set(USUAL)
    assert stage_of("finetune", config).inputs == ("admit", "query", "pretrain")
    assert stage_of("query", config).fields(config) == {
        "selection": {"num_votes": 3},
        "query_error": 0.5,
        "query_noise_multiplier": None,
    }
    moved = finished.run("privacy.class_means_noise_multiplier=7")
    assert {row.action for row in plan_run(moved).stages} == {"reused"}


def test_settings_of_the_warm_up_do_not_touch_what_was_paid(with_means: Place) -> None:
    planned = plan_run(
        with_means.run(*MEANS, "generator.class_means.sigma_min=0.5", "generator.pretrain.sigma_mean=-1")
    )
    actions = {row.stage: row.action for row in planned.stages}
    assert actions["query"] == actions["class_means"] == "reused"
    assert actions["warmup"] == actions["pretrain"] == "run"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("generator={kind: gan, class_means: {num_steps: 4}}",), "class_means: this key is unknown"),
        (("selection.strategy=all",), "trained on public "),
        (("generator.class_means.sigma_min=50",), r"sigma_min \(50.0\) must be below sigma_max"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: tuple[str, ...], message: str, granted: Place) -> None:
    with pytest.raises(ConfigError, match=message):
        granted.run(*MEANS, *overrides)


def test_a_stopped_warm_up_begins_anew_and_ends_with_the_very_weights_it_would_have_had(
    with_means: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = (*MEANS, "generator.class_means.seed=1")
    stopped, straight = (with_means.copy_to(tmp_path / name) for name in ("stopped", "straight"))
    first = stopped.run(*other)
    steps = []

    def asks(*arguments: Any, on_step: Callable[..., None], **named: Any) -> PretrainState:
        def after(state: PretrainState, loss: float) -> None:
            steps.append(state.step)
            if state.step == 2:
                first.stop.ask()
            on_step(state, loss)

        return warm_up(*arguments, on_step=after, **named)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("privimage.stages.warmup.warm_up", asks)
        run_all(first, "warmup")
    assert steps == [1, 2]
    found = []
    for place in (stopped, straight):
        made = run_all(place.run(*other), "warmup")["warmup"]
        assert not made.reused
        found.append(made.ref.digest)
    assert found[0] == found[1]
    assert with_means.kinds == stopped.kinds == straight.kinds


def test_the_warm_up_starts_from_the_pre_trained_generator_and_changes_it(with_means: Place) -> None:
    before, after = (
        load_file(artifacts(with_means)[stage].local("generator.safetensors")) for stage in ("pretrain", "warmup")
    )
    moved = [float((before[name] - after[name]).norm() / before[name].norm().clamp(min=1e-6)) for name in before]
    assert 0 < np.median(moved) < 0.2
