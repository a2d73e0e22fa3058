"""The plan: what a run would reuse, run and cost, without running or charging any of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from privimage.errors import ArtifactDamaged, ConfigError
from privimage.running.plan import grant_in_words, plan_run
from privimage.running.runner import run_all
from privimage.running.runs import Run
from tests.pipeline_fixtures import GRANT, USUAL, Answer, Place


def test_before_anything_is_there_only_the_first_stages_have_keys(tiny_config: Path, tmp_path: Path) -> None:
    place = Place(config=tiny_config, folder=tmp_path / "store")
    plan = plan_run(place.run())
    assert [row.stage for row in plan.stages] == list(USUAL)
    assert {row.action for row in plan.stages} == {"run"}
    assert [row.stage for row in plan.stages if row.key] == ["public", "admit"]
    unknown = {row.stage for row in plan.stages if row.epsilon is None}
    assert unknown == {"query", "finetune"}
    assert (plan.epsilon, plan.delta, plan.granted, plan.share_taken) == (1.0, 1e-4, None, None)
    assert not (place.folder / "ledger").exists()
    assert not (place.folder / "artifacts").exists()


def test_once_admitted_and_granted_it_knows_what_each_private_stage_will_cost(granted: Place) -> None:
    plan = plan_run(granted.run())
    actions = {row.stage: row.action for row in plan.stages}
    assert [stage for stage, action in actions.items() if action == "reused"] == [
        "public",
        "admit",
        "classifier",
        "index",
    ]
    costs = {row.stage: row.epsilon for row in plan.stages}
    assert 0 < costs["query"] < costs["finetune"] < 1  # type: ignore[operator]
    assert sum(cost or 0 for cost in costs.values()) == pytest.approx(1.0)
    assert (plan.granted, plan.share_taken) == (GRANT["epsilon"], 0)
    assert plan.share_asked is not None and 0.1 < plan.share_asked < 0.3
    assert plan.refusal is None
    assert granted.kinds == ["grant"]


def test_after_a_run_all_is_reused_and_nothing_is_left_to_pay(finished: Place) -> None:
    before = finished.kinds
    plan = plan_run(finished.run())
    assert {row.action for row in plan.stages} == {"reused"}
    assert all(row.written and row.epsilon == 0 for row in plan.stages)
    assert plan.granted == GRANT["epsilon"]
    assert plan.share_taken is not None and 0.1 < plan.share_taken < 0.3
    assert plan.share_asked == 0
    assert finished.kinds == before


def test_it_names_the_keys_that_the_run_then_makes(finished: Place) -> None:
    planned = {row.stage: row.key for row in plan_run(finished.run()).stages}
    assert planned == {name: result.ref.key for name, result in run_all(finished.run()).items()}


def test_it_tells_which_stages_a_change_makes_anew(finished: Place) -> None:
    plan = plan_run(finished.run("synthesize.seed=7"))
    anew = [row.stage for row in plan.stages if row.action == "run"]
    assert anew == ["synthesize", "downstream", "evaluate", "release"]
    assert sum(row.epsilon or 0 for row in plan.stages) == 0


def test_it_stops_at_the_stage_that_was_asked_for(finished: Place) -> None:
    assert [row.stage for row in plan_run(finished.run(), until="index").stages] == ["public", "classifier", "index"]
    with pytest.raises(ConfigError, match="no stage 'nonsense'"):
        plan_run(finished.run(), until="nonsense")


def test_it_finds_what_contradicts_the_data(granted: Place) -> None:
    with pytest.raises(ConfigError, match="1 / number of training images"):
        plan_run(granted.run("privacy.delta=0.05"))
    with pytest.raises(ConfigError, match="lower it to at most 20"):
        plan_run(granted.run("selection.categories_per_class=21"))
    with pytest.raises(ConfigError, match="expected_batch_size"):
        plan_run(granted.run("generator.finetune.expected_batch_size=1000"))


def test_it_finds_a_truncated_artifact(finished_copy: Place) -> None:
    weights = finished_copy.payload("finetune", "generator.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactDamaged, match=r"generator\.safetensors of artifact finetune"):
        plan_run(finished_copy.run())


def test_a_reservation_that_a_crash_left_is_shown_as_one_to_resume(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("privimage.generators.training.gradients.finetune", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(pretrained_copy.run())
    assert pretrained_copy.kinds == ["grant", "reserve query", "settle", "reserve finetune"]
    actions = {row.stage: row.action for row in plan_run(pretrained_copy.run()).stages}
    assert (actions["pretrain"], actions["finetune"], actions["synthesize"]) == ("reused", "resume", "run")


def test_the_command_prints_a_table_and_json(
    privimage: Callable[..., Answer], finished: Place, tiny_config: Path, tmp_path: Path
) -> None:
    table = privimage("plan", *finished.options())
    assert table.code == 0
    assert "This run states epsilon 1, delta 0.0001 in all." in table.out
    assert re.search(
        r"Of the grant of epsilon 3, 1\d\.\d% is spent or set aside; this run still asks for 0\.0%", table.out
    )
    answer = privimage("plan", *finished.options(), "--json")
    assert answer.code == 0
    plan = json.loads(answer.out)
    assert [row["action"] for row in plan["stages"]] == ["reused"] * len(USUAL)
    early = privimage("plan", tiny_config, "--store", tmp_path / "new")
    assert early.code == 0
    assert "No budget is granted yet, or the images are not admitted: privimage ledger grant" in early.out


def test_a_smaller_epsilon_than_the_reused_query_costs_is_foreseen(
    privimage: Callable[..., Answer], finished: Place
) -> None:
    answer = privimage("plan", *finished.options("privacy.epsilon=0.05"), "--json")
    assert answer.code == 3
    plan = json.loads(answer.out)
    assert all(row["epsilon"] is None or row["epsilon"] >= 0 for row in plan["stages"])
    assert "costs all of its epsilon 0.05" in plan["refusal"]
    shown = privimage("plan", *finished.options("privacy.epsilon=0.05"))
    assert "It would be refused: What this run builds on" in shown.out
    assert shown.code == 3


def test_a_run_whose_part_is_set_aside_asks_for_no_more(pretrained_copy: Place) -> None:
    """It is still to be charged for fine-tuning, out of what its query set aside: 0 % alone would read as free of charge."""
    assert grant_in_words(plan_run(pretrained_copy.run())).endswith(
        "part is set aside already, so it asks for no more."
    )


def test_a_run_that_would_be_refused_is_not_said_to_be_paid_for(pretrained_copy: Place) -> None:
    other = pretrained_copy.run("privacy.epsilon=3")
    words = grant_in_words(plan_run(Run(config=other.config, store=other.store, draws={"query": 2, "finetune": 2})))
    assert "It would be refused" in words and "set aside already" not in words


def test_a_finished_run_foresees_no_refusal(privimage: Callable[..., Answer], finished: Place) -> None:
    assert json.loads(privimage("plan", *finished.options(), "--json").out)["refusal"] is None


def test_what_a_run_takes_of_the_grant_is_said_in_words(
    privimage: Callable[..., Answer], tiny_config: Path, granted: Place, tmp_path: Path
) -> None:
    asked = grant_in_words(plan_run(granted.run()))
    assert re.fullmatch(
        r"Of the grant of epsilon 3, 0\.0% is spent or set aside; this run still asks for 1\d\.\d%\.", asked
    )
    # A run of all that was granted asks for more than the filter holds, which is allowed, and no overdraft.
    whole = grant_in_words(plan_run(granted.run("privacy.epsilon=3")))
    assert whole.endswith("this run takes the whole grant, and no other run will fit.")
    # Both sets are admitted by the grant, but not the public set of another configuration.
    options = [tiny_config, "--store", tmp_path / "store"]
    assert privimage("ledger", "grant", *options, "--epsilon", "3", "--delta", "1e-4").code == 0
    assert (
        "Granted: epsilon 3. What this run takes of it is known once"
        in privimage("plan", *options, "--set", "public.source.images_per_category=11").out
    )


def test_a_grant_of_another_delta_than_the_run_states_is_refused_because_it_could_not_be_changed(
    privimage: Callable[..., Answer], tiny_config: Path, tmp_path: Path
) -> None:
    options = [tiny_config, "--store", tmp_path / "store"]
    refused = privimage("ledger", "grant", *options, "--epsilon", "3", "--delta", "1e-5")
    assert (
        refused.code == 2
        and "The grant's delta is 1e-05, but" in refused.complaint
        and "Nothing was granted" in refused.complaint
    )
    assert privimage("ledger", "grant", *options, "--epsilon", "3", "--delta", "1e-4").code == 0


@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_the_grant_does_not_hold_is_refused_before_anything_is_trained(
    privimage: Callable[..., Answer], granted_copy: Place, command: str
) -> None:
    """Another learning rate of the public classifier: all of it would be trained anew, and then refused."""
    first = granted_copy.run("privacy.epsilon=3", "selection.strategy=none")
    run_all(first, "finetune")
    before, there = granted_copy.entries, sorted(granted_copy.folder.glob("artifacts/*/*"))
    answer = privimage(command, *granted_copy.options("classifier.learning_rate=0.01"))
    assert answer.code == 3
    assert "has the whole grant" in answer.err + answer.out
    assert "classifier  " not in answer.err and sorted(granted_copy.folder.glob("artifacts/*/*")) == there
    assert granted_copy.entries == before


def test_a_run_is_refused_at_once_where_its_images_are_admitted_by_itself(
    privimage: Callable[..., Answer], tiny_config: Path, tmp_path: Path
) -> None:
    """Nothing of it was known before: it admits the images, and trains nothing."""
    options = [tiny_config, "--store", tmp_path / "store"]
    assert privimage("ledger", "grant", *options, "--epsilon", "3", "--delta", "1e-4").code == 0
    place = Place(config=tiny_config, folder=tmp_path / "store")
    run_all(place.run("privacy.epsilon=3", "selection.strategy=none"), "finetune")
    shutil.rmtree(tmp_path / "store" / "artifacts" / "public")
    answer = privimage("run", *options)
    assert (answer.code, answer.err.count("has the whole grant")) == (3, 1)
    assert "classifier  " not in answer.err


def test_an_artifact_that_was_paid_for_and_is_gone_is_missed_before_anything_is_trained(finished_copy: Place) -> None:
    (artifact,) = (finished_copy.folder / "artifacts" / "query").iterdir()
    shutil.rmtree(artifact)
    plan = plan_run(finished_copy.run())
    assert plan.refusal is not None and "its artifact is gone: restore it" in plan.refusal


def test_what_is_asked_for_and_costs_nothing_is_refused_nothing(finished_copy: Place) -> None:
    """The same configuration is refused where it would be charged, and not where all that is charged is there."""
    assert plan_run(finished_copy.run("privacy.epsilon=0.05")).refusal
    assert plan_run(finished_copy.run("privacy.epsilon=0.05"), "query").refusal is None
    run_all(finished_copy.run("privacy.epsilon=0.05"), "select")


def test_fine_tuning_that_was_interrupted_goes_on_where_a_plan_does_not_know_its_key(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generator was cleared away; made again, it has the same key, and the charge is there."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("privimage.generators.training.gradients.finetune", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(pretrained_copy.run())
    shutil.rmtree(pretrained_copy.folder / "artifacts" / "pretrain")
    assert plan_run(pretrained_copy.run()).refusal is None
    assert not run_all(pretrained_copy.run(), "finetune")["finetune"].reused
