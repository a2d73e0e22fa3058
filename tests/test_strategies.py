"""Baselines as configurations: what is selected without the query, that it is not paid for, and that none is hidden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from privimage.data.facts import SensitiveFacts
from privimage.errors import ConfigError, PrivacyRefused, Uncharged
from privimage.methods.selections.random import Random
from privimage.pipeline.plans import planned_finetune, run_plan
from privimage.pipeline.table import stage_of, stages_of
from privimage.privacy.accounting import epsilon_of_plan
from privimage.release.datasheet import front_matter
from privimage.release.export import SUMS, sums
from privimage.release.verify import read_release, verify_release
from privimage.running.plan import plan_run
from privimage.running.runner import run_all, run_stage
from privimage.store.artifacts import Artifact, list_artifacts
from privimage.store.files import Store
from tests.pipeline_fixtures import Answer, Place
from tests.release.example import hide

STRATEGIES = ("random", "all", "none")
COMPLETE = ["grant", "reserve finetune", "settle"]


def strategy(name: str) -> str:
    return f"selection.strategy={name}"


@pytest.fixture(scope="module", params=STRATEGIES)
def baseline(
    request: pytest.FixtureRequest, granted: Place, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Place]:
    """A finished run of each strategy; do not change."""
    place = granted.copy_to(tmp_path_factory.mktemp(request.param) / "store")
    run_all(place.run(strategy(request.param)))
    return request.param, place


Baseline = tuple[str, Place]


def artifacts(place: Place) -> dict[str, Artifact]:
    return {artifact.ref.stage: artifact for artifact in list_artifacts(place.store)}


def certificate(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.release / "certificate.json").read_text())
    return found


def outcomes(folder: Path, ledgers: Store | None) -> dict[str, str]:
    return {check.step: check.outcome for check in verify_release(read_release(Store.open(str(folder))), ledgers)}


# ------------------------------------------------------------------ what is paid


def test_without_a_query_fine_tuning_gets_less_noise(baseline: Baseline, finished: Place) -> None:
    less, more = (
        artifacts(place)["finetune"].manifest.metrics["noise_multiplier"] for place in (baseline[1], finished)
    )
    assert less < more  # type: ignore[operator]


def test_its_report_and_datasheet_tell_of_no_votes(baseline: Baseline) -> None:
    _, place = baseline
    report, card = ((place.release / name).read_text() for name in ("report.html", "README.md"))
    assert "votes" not in report
    assert "votes" not in card
    assert front_matter(card)["differential_privacy"]


def test_the_plan_foresees_it(baseline: Baseline, granted: Place) -> None:
    name, place = baseline
    planned = plan_run(granted.run(strategy(name)))
    costs = {row.stage: row.epsilon for row in planned.stages if row.epsilon}
    assert costs == {"finetune": 1.0}
    assert planned.refusal is None
    assert planned.share_asked is not None and 0.1 < planned.share_asked < 0.3
    after = plan_run(place.run(strategy(name)))
    assert {row.action for row in after.stages} == {"reused"}
    assert after.share_asked == 0


def test_the_ledger_tells_of_it_and_is_whole(baseline: Baseline, privimage: Callable[..., Answer]) -> None:
    _, place = baseline
    (shown,) = json.loads(privimage("ledger", "show", "--store", place.folder, "--json").out)
    (plan,) = shown["plans"]
    assert [each["stage"] for each in plan["stages"]] == ["finetune"]
    assert privimage("ledger", "show", "--store", place.folder).code == 0
    assert privimage("ledger", "verify", "--store", place.folder).code == 0


def test_more_images_of_its_generator_are_free(baseline: Baseline, tmp_path: Path) -> None:
    name, place = baseline
    copy = place.copy_to(tmp_path / "store")
    results = run_all(copy.run(strategy(name), "synthesize.seed=7"))
    assert results["finetune"].reused
    assert copy.kinds == COMPLETE


def test_an_interrupted_fine_tuning_goes_on_in_its_own_plan(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = granted_copy.run(strategy("none"))
    with monkeypatch.context() as patch:
        patch.setattr("privimage.generators.training.gradients.finetune", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(run)
    run_all(run)
    assert granted_copy.kinds == ["grant", "reserve finetune", "resume", "settle"]
    assert set(outcomes(granted_copy.release, granted_copy.store).values()) == {"passed"}


def test_what_is_set_aside_for_validation_is_part_of_the_plan_that_fine_tuning_opens(tiny_config: Path) -> None:
    facts = SensitiveFacts(
        num_train=500,
        num_validation=400,
        num_test=100,
        class_names=("a", "b", "c"),
        resolution=8,
        channels=1,
        identity="0" * 64,
    )
    overrides = ("sensitive.validation_fraction=0.4", "privacy.validation_error=0.02")
    run = Place(config=tiny_config, folder=tiny_config.parent / "no-store").run(strategy("none"), *overrides)
    plan, mechanism = run_plan(run.config, "0" * 64, facts, 1), planned_finetune(run.config, facts, 1)
    assert mechanism.event in plan.intends
    assert len(plan.intends) == 2
    assert 0.99 < epsilon_of_plan(plan.intends, [], plan.delta) <= 1.0


# ------------------------------------------------------------------ what is selected


def test_by_default_the_query_selects(finished: Place) -> None:
    config = finished.run().config
    assert stage_of("select", config).inputs == ("query", "index")
    assert stage_of("pretrain", config).inputs == ("public", "select")
    assert set(stage_of("select", config).fields(config)["selection"]) == {
        "strategy",
        "categories_per_class",
        "max_fraction",
        "seed",
    }


def test_a_random_selection_cannot_see_votes_and_is_the_same_beside_them(
    pretrained: Place, granted_copy: Place, tmp_path: Path
) -> None:
    voted = pretrained.copy_to(tmp_path / "voted")
    beside, without = (run_all(place.run(strategy("random")), "select")["select"] for place in (voted, granted_copy))
    assert beside.ref.key == without.ref.key
    assert beside.ref.digest == without.ref.digest
    assert granted_copy.kinds == ["grant"]
    run = granted_copy.run(strategy("random"))
    assert "query" not in {name for stage in stages_of(run.config) for name in (stage.name, *stage.inputs)}


def test_it_holds_as_many_categories_for_each_class_and_none_twice(granted_copy: Place, pretrained: Place) -> None:
    for seed in (0, 1):
        run_all(granted_copy.run(strategy("random"), f"selection.seed={seed}"), "select")
    drawn = [
        artifact.read_json("selection.json")["classes"]
        for artifact in list_artifacts(granted_copy.store)
        if artifact.ref.stage == "select"
    ]
    semantic = artifacts(pretrained)["select"].read_json("selection.json")["classes"]
    picks = []
    for chosen in drawn:
        assert [row["name"] for row in chosen] == [row["name"] for row in semantic]
        picks.append([[category["number"] for category in row["categories"]] for row in chosen])
        assert [len(row) for row in picks[-1]] == [len(row["categories"]) for row in semantic]
        flat = [number for row in picks[-1] for number in row]
        assert len(set(flat)) == len(flat)
    assert sorted(picks) == sorted(Random(seed=seed).picks(None, 3, 62) for seed in (0, 1))
    assert picks[0] != picks[1]


def test_each_category_is_as_likely_as_any_other_to_be_drawn() -> None:
    found = np.zeros((2, 10))
    for seed in range(2000):
        for number, chosen in enumerate(Random(seed=seed).picks(None, 2, 10) or []):
            found[number, chosen] += 1
    # 600 expected of each; 5 standard deviations of a binomial.
    assert np.abs(found - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_all_public_images_are_trained_on_with_their_own_labels_and_no_class_starts_ahead(granted_copy: Place) -> None:
    run_all(granted_copy.run(strategy("all")), "pretrain")
    made = artifacts(granted_copy)
    selected = pq.read_table(made["select"].local("selected.parquet"))
    assert len(selected) == 620
    assert selected["class"].to_pylist() == selected["label"].to_pylist()
    assert made["select"].manifest.metrics == {"num_images": 620, "num_categories": 62}
    about = made["pretrain"].read_json("generator.json")
    assert about["class_names"] == ["anna", "berta", "carla"]
    assert about["loss_curve"]
    labels = load_file(made["pretrain"].local("generator.safetensors"))["net.embed_label.weight"]
    assert len(labels) == 4
    assert bool((labels == labels[-1]).all())


def test_a_share_of_all_public_images_holds_each_category(granted_copy: Place) -> None:
    run_all(granted_copy.run(strategy("all"), "selection.max_fraction=0.2"), "select")
    selected = pq.read_table(artifacts(granted_copy)["select"].local("selected.parquet"))
    assert np.bincount(selected["label"].to_numpy()).tolist() == [2] * 62


def test_without_pretraining_settings_of_it_cause_no_other_fine_tuning(granted_copy: Place) -> None:
    def key(*overrides: str) -> str:
        return run_all(granted_copy.run(strategy("none"), *overrides), "pretrain")["pretrain"].ref.key

    first = key()
    assert artifacts(granted_copy)["pretrain"].manifest.metrics["num_images"] == 0
    assert key("generator.pretrain.num_steps=77") == first
    assert key("generator.pretrain.seed=7") != first


def test_strategies_that_choose_no_categories_are_not_told_how_many(granted: Place) -> None:
    for name in ("all", "none"):
        with pytest.raises(ConfigError, match="this key is unknown"):
            granted.run(strategy(name), "selection.categories_per_class=500")
    with pytest.raises(ConfigError, match="lower it to at most 20"):
        plan_run(granted.run(strategy("random"), "selection.categories_per_class=500"))


def test_labels_that_are_never_hidden_leave_new_classes_nothing_to_start_from(granted: Place) -> None:
    with pytest.raises(ConfigError, match=r"strategy all needs a generator\.pretrain\.label_dropout above 0"):
        granted.run(strategy("all"), "generator.pretrain.label_dropout=0")


def test_a_strategy_that_is_unknown_is_refused_with_those_that_are_known(granted: Place) -> None:
    with pytest.raises(ConfigError, match="strategy semantic, images, random, all, none"):
        granted.run(strategy("best"))
    assert granted.run().config.selection.asks_the_query


def test_a_stage_that_the_strategy_lacks_is_refused(granted: Place, privimage: Callable[..., Answer]) -> None:
    answer = privimage("stage", "query", *granted.options(strategy("random")))
    assert answer.code == 2
    assert "selection.strategy semantic" in answer.complaint


# ------------------------------------------------------------------ no query is hidden


def test_a_generator_that_goes_back_to_a_query_is_not_fine_tuned_as_if_there_had_been_none(
    pretrained_copy: Place,
) -> None:
    results = run_all(pretrained_copy.run(), "pretrain")
    before = pretrained_copy.kinds
    inputs = {name: results[name].ref for name in ("admit", "pretrain")}
    with pytest.raises(Uncharged, match=r"goes back to query \w{12}.* accounts for no query"):
        run_stage("finetune", pretrained_copy.run(strategy("random")), inputs)
    assert pretrained_copy.kinds == before


def test_nor_as_if_there_had_been_another(pretrained_copy: Place) -> None:
    first = run_all(pretrained_copy.run(), "pretrain")
    second = run_all(pretrained_copy.run(draws={"query": 2}), "query")
    before = pretrained_copy.kinds
    inputs = {"admit": first["admit"].ref, "pretrain": first["pretrain"].ref, "query": second["query"].ref}
    with pytest.raises(Uncharged, match="accounts for another query"):
        run_stage("finetune", pretrained_copy.run(), inputs)
    assert pretrained_copy.kinds == before


def test_no_certificate_leaves_a_query_out_that_fine_tuning_was_charged_with(finished_copy: Place) -> None:
    made = run_all(finished_copy.run())
    run = finished_copy.run(strategy("none"))
    inputs = {name: made[name].ref for name in stage_of("release", run.config).inputs}
    with pytest.raises(PrivacyRefused, match=r"charged after the query of entry .* no certificate leaves it out"):
        run_stage("release", run, inputs)


def rewritten(release: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy with a forged certificate, for which all sums fit."""
    copy = Path(shutil.copytree(release, folder))
    stated = json.loads((copy / "certificate.json").read_text())
    change(stated)
    (copy / "certificate.json").write_text(json.dumps(stated, indent=1, sort_keys=True))
    (copy / SUMS).write_bytes(sums({file.name: file.read_bytes() for file in copy.iterdir() if file.name != SUMS}))
    return copy


def test_a_certificate_that_hides_the_query_does_not_verify(finished: Place, tmp_path: Path) -> None:
    def hidden(stated: dict[str, Any]) -> None:
        hide(stated, "query")
        stated["selection"] = "random"

    plain = rewritten(finished.release, tmp_path / "plain", lambda stated: hide(stated, "query"))
    assert outcomes(plain, None)["epsilon"] == "failed"
    forged = rewritten(finished.release, tmp_path / "forged", hidden)
    checks = verify_release(read_release(Store.open(str(forged))), finished.store)
    assert [check.step for check in checks if check.outcome == "failed"] == ["ledger", "store"]
    assert any("is a query of the same plan, of which nothing is said" in check.why for check in checks)


def test_a_certificate_that_claims_votes_that_were_not_cast_does_not_verify(baseline: Baseline, tmp_path: Path) -> None:
    _, place = baseline
    forged = rewritten(place.release, tmp_path / "forged", lambda stated: stated.update(selection="semantic"))
    assert outcomes(forged, place.store)["epsilon"] == "failed"
