"""The command line: its commands, their output, and their exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from privimage.errors import ArtifactDamaged, InputError, PrivacyRefused, PrivimageError
from privimage.running.runner import run_all
from privimage.store.files import Store
from tests.pipeline_fixtures import NAME_ON_FILES, USUAL, Answer, Place

Command = Callable[..., Answer]


# ------------------------------------------------------------------ exit codes and help


def test_exit_codes_follow_the_tree_of_errors() -> None:
    assert (PrivimageError.exit_code, ArtifactDamaged.exit_code) == (1, 1)
    assert (InputError.exit_code, PrivacyRefused.exit_code) == (2, 3)


def test_help_lists_every_command(privimage: Command) -> None:
    answer = privimage("--help")
    assert answer.code == 0
    for command in ("plan", "run", "stage", "ledger", "artifacts", "verify", "report", "export", "doctor"):
        assert f"\n    {command}" in answer.out
    assert {"show", "grant", "verify"} <= set(privimage("ledger", "--help").out.split())
    assert {"list", "show", "remove"} <= set(privimage("artifacts", "--help").out.split())


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("run",), ("run", "a.yaml", "--until", "nonsense")])
def test_a_usage_that_it_does_not_know_is_exit_code_2(privimage: Command, arguments: tuple[str, ...]) -> None:
    answer = privimage(*arguments)
    assert answer.code == 2
    assert "usage: privimage" in answer.err


def test_the_version_is_the_package_s(privimage: Command) -> None:
    assert privimage("--version").out.startswith("privimage 0.")


def test_a_stopped_command_says_that_it_can_go_on(
    privimage: Command, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("privimage.commands.run_commands.run_all", stopped)
    answer = privimage("run", *finished.options())
    assert answer.code == 1
    assert "goes on from the last checkpoint" in answer.complaint


# ------------------------------------------------------------------ run, stage


def test_run_tells_what_it_reused_and_where_everything_lies(privimage: Command, finished: Place) -> None:
    answer = privimage("run", *finished.options())
    assert answer.code == 0
    assert answer.err.count("reused, made") == len(USUAL)
    assert f"release:  {finished.release}" in answer.out
    assert f"report:   {finished.release / 'report.html'}" in answer.out
    assert "private, not for release" in answer.out


def test_run_never_prints_names_of_images(privimage: Command, pretrained_copy: Place) -> None:
    answer = privimage("run", *pretrained_copy.options())
    assert answer.code == 0
    assert NAME_ON_FILES not in answer.out + answer.err


def test_run_stops_after_the_stage_that_was_asked_for(privimage: Command, granted: Place) -> None:
    answer = privimage("run", *granted.options(), "--until", "index")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.err.splitlines() if "reused" in line] == [
        "public",
        "classifier",
        "index",
    ]


def test_stage_runs_one_stage_and_takes_a_number_for_its_draw(privimage: Command, finished_copy: Place) -> None:
    answer = privimage("stage", "synthesize", *finished_copy.options(), "--draw", "2")
    assert answer.code == 0
    assert "synthesize  done in" in answer.err
    assert answer.err.count("reused, made") == 8


@pytest.mark.parametrize("draw", ["nonsense=2", "finetune=0", "finetune=two", "finetune"])
def test_a_draw_that_makes_no_sense_is_refused(privimage: Command, finished: Place, draw: str) -> None:
    answer = privimage("run", *finished.options(), "--draw", draw)
    assert answer.code == 2
    assert answer.complaint


# ------------------------------------------------------------------ ledger


def test_ledger_show_tells_every_entry_and_what_is_left(privimage: Command, finished: Place) -> None:
    answer = privimage("ledger", "show", *finished.options())
    assert answer.code == 0
    assert "Granted: epsilon 3, delta 0.0001 for all runs together, as a Rényi filter of order" in answer.out
    assert re.search(r"Of it, 1\d\.\d% is spent or set aside for the runs above; 8\d\.\d% is left", answer.out)
    found = json.loads(privimage("ledger", "show", *finished.options(), "--json").out)
    assert [entry["kind"] for entry in found["entries"]] == ["grant", "reserve", "settle", "reserve", "settle"]
    assert 0.1 < found["spent"]["share_of_grant"] < 0.3
    assert 0.99 < found["spent"]["epsilon"] <= 1
    assert found["granted"]["num_images"] == 144
    (plan,) = found["plans"]
    assert plan["run"] == "tiny"
    assert [(paid["entry"], paid["stage"], paid["state"]) for paid in plan["stages"]] == [
        (1, "query", "settled"),
        (3, "finetune", "settled"),
    ]
    assert all(0 < paid["epsilon_alone"] < plan["epsilon"] for paid in plan["stages"])
    assert found["left"]["share_of_grant"] == pytest.approx(1 - found["spent"]["share_of_grant"])
    assert 2 < found["left"]["epsilon_of_one_more_run"] < 3
    assert f"is left: one more run of epsilon {found['left']['epsilon_of_one_more_run']:.3g}, about" in answer.out
    assert re.search(r"query 0\.\d+, finetune 0\.\d+", answer.out)


def test_a_ledger_whose_grant_is_taken_says_that_no_run_fits(privimage: Command, granted_copy: Place) -> None:
    run_all(granted_copy.run("privacy.epsilon=3"), "query")
    answer = privimage("ledger", "show", *granted_copy.options())
    assert "0.0% is left: no other run fits." in answer.out


def test_looking_at_a_ledger_admits_no_images_and_writes_nothing(
    privimage: Command, tiny_config: Path, tmp_path: Path
) -> None:
    for which in ([tiny_config], [], ["--dataset", "0" * 32]):
        answer = privimage("ledger", "show", *which, "--store", tmp_path / "store")
        assert answer.code == 2
        assert "no ledger" in answer.complaint or "not admitted" in answer.complaint
    assert not list((tmp_path / "store").rglob("*"))


def test_a_ledger_is_shown_when_the_images_are_long_gone(privimage: Command, finished: Place) -> None:
    dataset = finished.ledger.dataset_id
    for which in ([], ["--dataset", dataset]):
        answer = privimage("ledger", "show", *which, "--store", finished.folder)
        assert answer.code == 0
        assert dataset in answer.out
        assert "tiny: finetune (settled)" in answer.out
        assert "settle" in answer.out and "of 000003: artifact" in answer.out


def test_ledger_verify_tells_a_whole_chain_from_a_broken_one(privimage: Command, finished_copy: Place) -> None:
    answer = privimage("ledger", "verify", *finished_copy.options())
    assert answer.code == 0
    assert "5 entries, the chain is whole" in answer.out
    found = json.loads(privimage("ledger", "verify", *finished_copy.options(), "--json").out)
    assert (found["entries"], found["chain"]) == (5, "whole")
    (finished_copy.folder / "ledger" / finished_copy.ledger.dataset_id / "entries" / "000002.json").unlink()
    broken = privimage("ledger", "verify", *finished_copy.options())
    assert broken.code == 3
    assert "entry 000002 is missing" in broken.complaint


def test_an_abandoned_run_gives_back_what_it_had_set_aside(privimage: Command, pretrained_copy: Place) -> None:
    (plan,) = pretrained_copy.ledger.spent().plans
    answer = privimage("ledger", "close", plan.id, *pretrained_copy.options(), "--reason", "wrong settings")
    assert answer.code == 0
    assert f"Closed {plan.id}; 9" in answer.out
    shown = privimage("ledger", "show", *pretrained_copy.options())
    assert f"{plan.id}: wrong settings" in shown.out and "(closed)" in shown.out
    (closed,) = pretrained_copy.ledger.spent().plans
    assert closed.share < plan.share / 3
    assert closed.epsilon == plan.epsilon
    unknown = privimage("ledger", "close", "plan-x", *pretrained_copy.options())
    assert unknown.code == 2
    assert "has a plan plan-x" in unknown.complaint


def test_what_is_run_after_its_plan_was_closed_opens_a_plan_of_its_own(
    privimage: Command, pretrained_copy: Place
) -> None:
    (plan,) = pretrained_copy.ledger.spent().plans
    assert privimage("ledger", "close", plan.id, *pretrained_copy.options()).code == 0
    assert privimage("run", *pretrained_copy.options(), "--until", "finetune").code == 0
    query, chosen = (entry for entry in pretrained_copy.entries if entry.kind == "reserve")
    assert chosen.body["plan"]["id"] != plan.id
    assert chosen.body["plan"]["builds_on"] == [query.id]


def test_the_same_grant_again_changes_nothing(privimage: Command, finished_copy: Place) -> None:
    before = finished_copy.entries
    answer = privimage("ledger", "grant", *finished_copy.options(), "--epsilon", "3", "--delta", "1e-4")
    assert answer.code == 0
    assert "Granted: epsilon 3" in answer.out
    assert finished_copy.entries == before


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [
        *(("0", "1e-4"), ("-1", "1e-4"), ("inf", "1e-4"), ("1", "0"), ("1", "1")),
        *(
            ("1e6", "1e-4"),
            ("1e-9", "1e-4"),
            ("nan", "1e-4"),
            ("1", "1e-11"),
            ("1", "1e-15"),
            ("1", "1e-100"),
            ("1", "nan"),
        ),
    ],
)
def test_a_grant_of_nothing_or_everything_or_of_what_no_accountant_can_use_is_refused(
    privimage: Command, tiny_config: Path, tmp_path: Path, epsilon: str, delta: str
) -> None:
    store = tmp_path / "store"
    answer = privimage("ledger", "grant", tiny_config, "--store", store, "--epsilon", epsilon, "--delta", delta)
    assert answer.code == 2
    assert "A grant needs an epsilon from 0.0001 to 1000, and a delta from 1e-10 to below 1 /" in answer.complaint
    assert "Nothing was granted" in answer.complaint
    assert not (store / "ledger").exists()


# ------------------------------------------------------------------ artifacts


def test_artifacts_list_names_every_artifact_and_its_kind(privimage: Command, finished: Place) -> None:
    answer = privimage("artifacts", "list", "--store", finished.folder)
    assert answer.code == 0
    kinds = {line.split()[0]: line.split()[-1] for line in answer.out.splitlines()[1:]}
    assert set(kinds) == set(USUAL)
    assert {stage for stage, kind in kinds.items() if kind == "sealed"} == {"admit", "evaluate"}
    assert {stage for stage, kind in kinds.items() if kind == "paid"} == {"query", "finetune"}
    found = json.loads(privimage("artifacts", "list", "--store", finished.folder, "--json").out)
    assert {artifact["stage"] for artifact in found} == set(kinds)


def test_artifacts_show_prints_a_manifest_by_the_beginning_of_its_key(privimage: Command, finished: Place) -> None:
    key = run_all(finished.run())["finetune"].ref.key
    answer = privimage("artifacts", "show", "finetune", key[:10], "--store", finished.folder)
    assert answer.code == 0
    manifest = json.loads(answer.out)
    assert manifest["key"] == key
    assert len(manifest["reservations"]) == 1
    none = privimage("artifacts", "show", "finetune", "zzz", "--store", finished.folder)
    assert none.code == 2
    assert "0 artifacts of stage finetune" in none.complaint


def test_artifacts_remove_deletes_public_ones_and_the_next_run_makes_them_again(
    privimage: Command, finished_copy: Place
) -> None:
    ref = run_all(finished_copy.run())["index"].ref
    answer = privimage("artifacts", "remove", "index", ref.key, "--store", finished_copy.folder)
    assert answer.code == 0
    results = run_all(finished_copy.run())
    assert [name for name, result in results.items() if not result.reused] == ["index"]
    assert results["index"].ref == ref


def test_artifacts_remove_refuses_paid_ones_without_force(privimage: Command, finished_copy: Place) -> None:
    key = run_all(finished_copy.run())["finetune"].ref.key
    arguments = ("artifacts", "remove", "finetune", key, "--store", finished_copy.folder)
    refused = privimage(*arguments)
    assert refused.code == 3
    assert "would cost that budget again" in refused.complaint
    assert finished_copy.payload("finetune", "generator.safetensors").exists()
    assert privimage(*arguments, "--force").code == 0
    gone = privimage(*arguments)
    assert gone.code == 2
    assert "There is no artifact finetune" in gone.complaint


# ------------------------------------------------------------------ verify, report, doctor


def test_verify_takes_the_name_of_a_release_in_the_store(privimage: Command, finished: Place) -> None:
    answer = privimage("verify", finished.release.name, "--store", finished.folder)
    assert answer.code == 0
    assert answer.out.endswith("\nVerified.\n")
    absent = privimage("verify", "no-such-release", "--store", finished.folder)
    assert absent.code == 2
    assert "no-such-release is no folder" in absent.complaint
    assert finished.release.name in absent.complaint
    assert privimage("verify", "tiny", "--store", finished.folder).code == 0


def test_verify_says_in_words_what_failed(privimage: Command, finished_copy: Place) -> None:
    (finished_copy.release / "samples.png").write_bytes(b"other")
    answer = privimage("verify", finished_copy.release, "--store", finished_copy.folder)
    assert answer.code == 1
    assert "failed   files: changed or unlisted: samples.png" in answer.out
    assert answer.out.endswith("NOT VERIFIED\n")


def test_report_tells_where_the_report_is_and_opens_it_when_asked(
    privimage: Command, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    answer = privimage("report", finished.release, "--store", finished.folder)
    assert answer.code == 0
    assert Path(answer.out.strip()).is_file()
    assert opened == []
    assert privimage("report", finished.release.name, "--open", "--store", finished.folder).code == 0
    assert opened == [(finished.release / "report.html").as_uri()]


def test_doctor_finds_a_healthy_store(privimage: Command, tmp_path: Path) -> None:
    answer = privimage("doctor", "--store", tmp_path / "store", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["healthy"] is True
    assert {"python", "torch", "prefect", "device", "store", "inception weights"} <= set(found)
    assert "conditional writes work" in found["store"]
    table = privimage("doctor", "--store", tmp_path / "store")
    assert table.code == 0
    assert "torch" in table.out


def test_doctor_says_what_is_wrong_with_a_store(privimage: Command) -> None:
    answer = privimage("doctor", "--store", "gopher://store", "--json")
    assert answer.code == 1
    found = json.loads(answer.out)
    assert found["healthy"] is False
    assert "is no store" in found["store"]


def test_the_store_may_be_named_by_the_environment(
    privimage: Command, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVIMAGE_STORE", str(finished.folder))
    assert privimage("run", finished.config).code == 0


def test_the_report_of_a_remote_store_is_opened_as_a_copy(
    privimage: Callable[..., Answer], finished: Place, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    remote = Store.open(f"s3://{s3_bucket}/store/releases/tiny-1")
    for file in finished.release.iterdir():
        remote.upload(file, file.name)
    assert privimage("report", remote.url, "--open").code == 0
    (url,) = opened
    assert url.startswith("file://")
    assert Path(url.removeprefix("file://")).read_bytes() == (finished.release / "report.html").read_bytes()
