"""The runner: what is reused, what is charged, what is refused, and what stays sealed."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from privimage.data.table import read_images
from privimage.errors import ArtifactDamaged, BudgetExceeded, LedgerBroken, PrivacyRefused, TrainingError, Uncharged
from privimage.pipeline.table import STAGES, stage_named
from privimage.privacy.accounting import epsilon_of, epsilon_of_plan, event_to_json
from privimage.privacy.budget import Plan
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import DPSGDMechanism, HistogramQuery
from privimage.release.verify import read_release, verify_release
from privimage.running.charging import Door
from privimage.running.granting import grant
from privimage.running.runner import StageResult, run_all
from privimage.store.artifacts import Artifact, find, list_artifacts, open_ref
from privimage.store.files import Store
from tests.pipeline_fixtures import GRANT, NAME_ON_FILES, USUAL, Place

COMPLETE = ["grant", "reserve query", "settle", "reserve finetune", "settle"]
PRIVATE = ("query", "finetune")


def reused(results: dict[str, StageResult]) -> list[str]:
    return [name for name, result in results.items() if result.reused]


def anew(results: dict[str, StageResult]) -> list[str]:
    return [name for name, result in results.items() if not result.reused]


def published(place: Place) -> set[str]:
    return {f"{artifact.ref.stage} {artifact.ref.key}" for artifact in list_artifacts(place.store)}


# ------------------------------------------------------------------ one run


def test_a_run_writes_grant_and_two_charges_and_nothing_else(finished: Place) -> None:
    assert finished.kinds == COMPLETE
    assert set(finished.ledger.states().values()) == {"settled"}


def test_a_run_costs_no_more_than_it_states_and_uses_nearly_all_of_it(finished: Place) -> None:
    spent = finished.ledger.spent()
    assert 0.99 < spent.epsilon <= 1.0
    assert [plan.target for plan in spent.plans] == [1.0]
    assert spent.delta == 1e-4


def test_a_settled_charge_names_the_content_of_its_artifact(finished: Place) -> None:
    results = run_all(finished.run())
    settled = [entry.body["artifact"] for entry in finished.entries if entry.kind == "settle"]
    assert settled == [results[stage].ref.digest for stage in PRIVATE]


def test_the_ledger_holds_the_mechanism_that_the_artifact_says_it_ran(finished: Place) -> None:
    charged = {e.body["stage"]: e.body["event"] for e in finished.entries if e.kind == "reserve"}
    written = json.loads(finished.payload("finetune", "generator.json").read_text())["mechanism"]
    rate = written.pop("sample_rate")
    ran = DPSGDMechanism(**written)
    assert ran.sample_rate == rate
    assert event_to_json(ran.event) == charged["finetune"]
    query = json.loads(finished.payload("query", "query.json").read_text())
    asked = HistogramQuery(
        num_votes=query["num_votes"],
        num_classes=len(query["class_names"]),
        num_categories=len(query["category_names"]),
        noise_multiplier=query["noise_multiplier"],
    )
    assert asked.noise_stddev == query["noise_stddev"]
    assert event_to_json(asked.event) == charged["query"]


def test_the_charge_of_fine_tuning_counts_the_steps_that_a_crash_may_repeat(finished: Place) -> None:
    (entry,) = (e for e in finished.entries if e.kind == "reserve" and e.body["stage"] == "finetune")
    assert entry.body["event"]["count"] == 4 + 4


def test_no_cell_of_the_stored_histogram_is_an_exact_count(pretrained: Place) -> None:
    released = json.loads(pretrained.payload("query", "query.json").read_text())
    cells = [cell for row in released["noisy_histogram"] for cell in row]
    assert sum(cell == round(cell) for cell in cells) < len(cells) / 10, "noise lies on 1024ths of a vote"


# ------------------------------------------------------------------ reuse


def test_a_second_run_reuses_everything_and_charges_nothing(finished: Place) -> None:
    first, second = run_all(finished.run()), run_all(finished.run())
    assert reused(second) == list(USUAL)
    assert {name: result.ref for name, result in first.items()} == {n: r.ref for n, r in second.items()}
    assert finished.kinds == COMPLETE


def test_settings_of_performance_change_no_key(finished: Place) -> None:
    results = run_all(finished.run("performance.physical_batch_size=7", "performance.device=auto"))
    assert anew(results) == []
    assert finished.kinds == COMPLETE


def test_a_change_in_sampling_reruns_from_there_and_charges_nothing(finished_copy: Place) -> None:
    results = run_all(finished_copy.run("synthesize.seed=7"))
    assert anew(results) == ["synthesize", "downstream", "evaluate", "release"]
    assert finished_copy.kinds == COMPLETE


def test_another_name_makes_another_release_and_nothing_else(finished_copy: Place) -> None:
    assert anew(run_all(finished_copy.run("name=renamed"))) == ["release"]
    names = {folder.name.rsplit("-", 1)[0] for folder in (finished_copy.folder / "releases").iterdir()}
    assert names == {"tiny", "renamed"}


def test_the_owner_may_touch_the_files_without_being_charged_again(finished_copy: Place, tmp_path: Path) -> None:
    # The key of admission changes with the files' times; the images that it admits, and their ledger, do not.
    moved = tmp_path / "moved"
    source = finished_copy.run().config.sensitive.train
    shutil.copytree(source.path, moved, copy_function=shutil.copyfile)  # type: ignore[union-attr]
    run = finished_copy.run(f"sensitive.train.path={moved}")
    with pytest.raises(PrivacyRefused, match="another source than was granted for"):
        run_all(run)
    grant(run, epsilon=GRANT["epsilon"], delta=GRANT["delta"], name="tiny")
    assert anew(run_all(run)) == []
    assert finished_copy.kinds == COMPLETE


# ------------------------------------------------------------------ more than one run


@pytest.fixture(scope="module")
def two_runs(finished: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, StageResult]]:
    """A second run of epsilon 2 beside the first one of 1: the grant of 3 is used up."""
    place = finished.copy_to(tmp_path_factory.mktemp("two-runs") / "store")
    return place, run_all(place.run("privacy.epsilon=2", "name=second"))


def certificates(place: Place) -> dict[str, dict[str, Any]]:
    files = (place.folder / "releases").glob("*/certificate.json")
    return {certificate["name"]: certificate for certificate in (json.loads(file.read_text()) for file in files)}


def entries_of(certificate: dict[str, Any], stage: str) -> list[str]:
    return [entry["ledger_entry"]["id"] for entry in certificate["mechanisms"] if entry["stage"] == stage]


def test_two_runs_of_different_epsilon_share_the_query_and_both_name_it(
    two_runs: tuple[Place, dict[str, StageResult]],
) -> None:
    place, results = two_runs
    assert anew(results) == ["finetune", "synthesize", "downstream", "evaluate", "release"]
    assert place.kinds == [*COMPLETE, "reserve finetune", "settle"]
    both = certificates(place)
    assert entries_of(both["tiny"], "query") == entries_of(both["second"], "query")
    assert entries_of(both["tiny"], "finetune") != entries_of(both["second"], "finetune")
    assert (both["tiny"]["epsilon"], both["second"]["epsilon"]) == (1, 2)
    assert 1.98 < both["second"]["epsilon_computed"] <= 2


def test_two_runs_count_together_in_the_ledger(two_runs: tuple[Place, dict[str, StageResult]]) -> None:
    spent = two_runs[0].ledger.spent()
    assert [plan.target for plan in spent.plans] == [1.0, 2.0]
    assert 0.5 < spent.share < 1.0
    assert spent.delta == pytest.approx(2e-4)
    assert 2.9 < spent.epsilon <= 3.0


def test_a_change_in_fine_tuning_is_refused_once_the_grant_is_used_up(
    two_runs: tuple[Place, dict[str, StageResult]],
) -> None:
    place, _ = two_runs
    entries, artifacts = place.entries, published(place)
    with pytest.raises(BudgetExceeded, match="Nothing was charged") as caught:
        run_all(place.run("generator.finetune.learning_rate=0.01", "privacy.epsilon=2.9"))
    assert caught.value.exit_code == 3
    assert place.entries == entries
    assert published(place) == artifacts
    assert anew(run_all(place.run())) == []


def test_another_draw_of_fine_tuning_is_another_charge(finished_copy: Place) -> None:
    results = run_all(finished_copy.run(draws={"finetune": 2}), "synthesize")
    assert anew(results) == ["finetune", "synthesize"]
    assert finished_copy.kinds == [*COMPLETE, "reserve finetune", "settle"]
    assert len(finished_copy.ledger.spent().plans) == 2
    second = finished_copy.entries[-2]
    assert second.body["plan"]["builds_on"] == [finished_copy.entries[1].id]
    assert 0.99 < epsilon_of_plan([second.event], [finished_copy.entries[1].event], 1e-4) <= 1.0


def test_fine_tuning_that_was_chosen_after_the_votes_were_seen_is_not_accounted_as_if_it_were_fixed_before(
    pretrained_copy: Place,
) -> None:
    results = run_all(pretrained_copy.run("generator.finetune.num_steps=6"), "finetune")
    assert anew(results) == ["finetune"]
    query, _, chosen = pretrained_copy.entries[1:4]
    assert chosen.body["plan"]["builds_on"] == [query.id]
    assert epsilon_of([query.event, chosen.event], 1e-4) < epsilon_of_plan([chosen.event], [query.event], 1e-4) <= 1.0


def test_learning_settings_may_be_chosen_after_the_votes_were_seen(pretrained_copy: Place) -> None:
    run_all(pretrained_copy.run("generator.finetune.learning_rate=0.01"), "finetune")
    query, _, chosen = pretrained_copy.entries[1:4]
    assert chosen.body["plan"]["id"] == query.body["plan"]["id"]
    assert 0.99 < epsilon_of([query.event, chosen.event], 1e-4) <= 1.0


def test_what_another_process_published_meanwhile_is_reused_and_nobody_is_told_to_pay_again(
    finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: dict[str, int] = {}

    def late(store: Store, stage: str, key: str, sealed: bool) -> Artifact | None:
        looks[stage] = looks.get(stage, 0) + 1
        return None if stage == "finetune" and looks[stage] == 1 else find(store, stage, key, sealed)

    before = finished_copy.entries
    monkeypatch.setattr("privimage.running.runner.find", late)
    assert anew(run_all(finished_copy.run())) == []
    assert looks["finetune"] == 2
    assert finished_copy.entries == before


# ------------------------------------------------------------------ damage


def cut_ledger(place: Place, keep: int) -> None:
    """Lose the newest entries, as a restored backup of last week would."""
    for number in range(keep, len(place.entries)):
        (place.folder / "ledger" / place.ledger.dataset_id / "entries" / f"{number:06d}.json").unlink()


def test_an_artifact_whose_charge_vanished_is_refused_and_not_reused(finished_copy: Place) -> None:
    cut_ledger(finished_copy, keep=3)
    artifacts = published(finished_copy)
    with pytest.raises(LedgerBroken, match=r"entries were lost, .* Restore the whole ledger"):
        run_all(finished_copy.run())
    assert finished_copy.kinds == COMPLETE[:3]
    assert published(finished_copy) == artifacts


def test_an_artifact_that_another_ledger_of_the_store_paid_for_is_not_reused(pretrained_copy: Place) -> None:
    own = pretrained_copy.folder / "ledger" / pretrained_copy.ledger.dataset_id
    shutil.copytree(own / "entries", own.parent / ("0" * 32) / "entries")
    for entry in sorted((own / "entries").iterdir())[1:]:
        entry.unlink()
    with pytest.raises(Uncharged, match=r"not reused\. Restore the ledger"):
        run_all(pretrained_copy.run(), "query")


def test_a_ledger_that_vanished_as_a_whole_cannot_be_granted_anew(finished_copy: Place) -> None:
    shutil.rmtree(finished_copy.folder / "ledger")
    with pytest.raises(
        LedgerBroken, match="which no ledger of .* holds: entries were lost, or an old copy was restored"
    ):
        run_all(finished_copy.run())
    with pytest.raises(LedgerBroken, match="was paid for by ledger entry"):
        grant(finished_copy.run(), epsilon=9, delta=1e-4, name="again")
    assert not list((finished_copy.folder / "ledger").rglob("entries"))


def test_one_flipped_byte_in_the_generator_is_found_and_named_before_it_is_used(finished_copy: Place) -> None:
    weights = finished_copy.payload("finetune", "generator.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    artifacts = published(finished_copy)
    with pytest.raises(ArtifactDamaged, match=r"generator\.safetensors of artifact finetune .* restored from a backup"):
        run_all(finished_copy.run("synthesize.seed=7"))
    assert published(finished_copy) == artifacts
    assert finished_copy.kinds == COMPLETE


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_a_truncated_or_missing_payload_stops_even_a_run_that_would_reuse_all(finished_copy: Place, harm: str) -> None:
    weights = finished_copy.payload("finetune", "generator.safetensors")
    data = weights.read_bytes()
    weights.unlink()
    if harm == "truncated":
        weights.write_bytes(data[:-1])
    artifacts = published(finished_copy)
    with pytest.raises(ArtifactDamaged, match=r"generator\.safetensors of artifact finetune"):
        run_all(finished_copy.run())
    assert published(finished_copy) == artifacts
    assert finished_copy.kinds == COMPLETE


def test_a_crash_between_publishing_and_settling_is_settled_by_the_next_run(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(pretrained_copy.run(), "finetune")
    assert pretrained_copy.kinds == COMPLETE[:4]
    results = run_all(pretrained_copy.run(), "finetune")
    assert anew(results) == []
    assert pretrained_copy.kinds == COMPLETE
    assert pretrained_copy.entries[-1].body["artifact"] == results["finetune"].ref.digest


def test_a_query_that_was_killed_is_charged_again_in_the_same_plan(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("privimage.stages.query.add_noise", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(granted_copy.run(), "query")
    results = run_all(granted_copy.run(), "query")
    first, second = granted_copy.entries[1:3]
    assert granted_copy.kinds == ["grant", "reserve query", "reserve query", "settle", "settle"]
    assert first.body["plan"]["id"] == second.body["plan"]["id"]
    # It may have run twice, so both charges count in every certificate to come.
    query = open_ref(granted_copy.store, results["query"].ref)
    assert set(query.manifest.reservations) == {first.id, second.id}


def test_a_stage_that_fails_before_it_opens_an_image_gets_its_charge_back(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise TrainingError("no such network")

    with monkeypatch.context() as patch:
        patch.setattr("privimage.generators.training.gradients.start_state", failing)
        with pytest.raises(TrainingError):
            run_all(pretrained_copy.run(), "finetune")
    assert pretrained_copy.kinds == [*COMPLETE[:4], "void"]
    assert pretrained_copy.ledger.spent().epsilon < 0.5
    assert not run_all(pretrained_copy.run(), "finetune")["finetune"].reused
    assert pretrained_copy.ledger.spent().epsilon <= 1.0


def test_a_paid_artifact_that_is_gone_is_not_made_again_in_silence(finished_copy: Place) -> None:
    key = run_all(finished_copy.run())["finetune"].ref.key
    shutil.rmtree(finished_copy.folder / "artifacts" / "finetune" / key)
    with pytest.raises(Uncharged, match="its artifact is gone"):
        run_all(finished_copy.run())
    assert finished_copy.kinds == COMPLETE


# ------------------------------------------------------------------ the sealed side


def everything_outside_private(place: Place) -> dict[str, bytes]:
    store = place.store
    return {name: store.read(name) for name in store.list() if not name.startswith("private/")}


def test_no_file_outside_the_private_side_shows_names_or_identity_of_the_images(finished: Place) -> None:
    facts = json.loads(finished.payload("admit", "facts.json").read_text())
    key = (finished.folder / "private" / "identity.key").read_bytes()
    source = finished.run().config.sensitive.train.path  # type: ignore[union-attr]
    secrets = [NAME_ON_FILES.encode(), facts["identity"].encode(), source.encode(), key, key.hex().encode()]
    outside = everything_outside_private(finished)
    assert len(outside) > 20
    assert [name for name, data in outside.items() if any(secret in data for secret in secrets)] == []


def test_no_file_outside_the_private_side_holds_a_sensitive_picture(finished: Place, portraits: Path) -> None:
    (table,) = finished.folder.glob("private/artifacts/admit/*/payload-*/train-00000.parquet")
    stored = [row["bytes"] for row in pq.read_table(table)["image"].to_pylist()]
    files = [file.read_bytes() for file in sorted(portraits.glob("*/*.png"))]
    pixels = [Image.open(file).tobytes() for file in sorted(portraits.glob("*/*.png"))]
    pieces = [*stored, *files, *pixels]
    outside = everything_outside_private(finished)
    assert [name for name, data in outside.items() if any(piece in data for piece in pieces)] == []
    for parquet in finished.folder.glob("artifacts/*/*/payload-*/images-*.parquet"):
        images, _ = read_images([parquet])
        assert not {image.tobytes() for image in images} & set(pixels), parquet


def test_the_search_for_sensitive_pictures_would_find_one(finished: Place, portraits: Path) -> None:
    (table,) = finished.folder.glob("private/artifacts/admit/*/payload-*/train-00000.parquet")
    data = table.read_bytes()
    stored = pq.read_table(table)["image"].to_pylist()
    assert all(row["bytes"] in data for row in stored)
    images, _ = read_images([table])
    pixels = {Image.open(file).tobytes() for file in portraits.glob("*/*.png")}
    assert {image.tobytes() for image in images} <= pixels


def test_no_name_of_a_file_or_folder_shows_names_of_the_images(finished: Place) -> None:
    assert [path for path in finished.folder.rglob("*") if NAME_ON_FILES in str(path)] == []


def test_the_private_side_is_readable_by_its_owner_only(finished: Place) -> None:
    private = finished.folder / "private"
    open_to_others = [path for path in (private, *private.rglob("*")) if path.stat().st_mode & 0o077]
    assert open_to_others == []


def test_sealed_keys_and_digests_are_no_plain_hashes(granted: Place, tmp_path: Path) -> None:
    # The same images admitted in another store, with another secret: nothing that is named in public agrees.
    other = Place(config=granted.config, folder=tmp_path / "other")
    mine = run_all(granted.run(), "admit")["admit"].ref
    theirs = run_all(other.run(), "admit")["admit"].ref
    assert mine.sealed and theirs.sealed
    assert mine.key != theirs.key and mine.digest != theirs.digest


def test_training_images_are_shown_without_a_charge_to_a_sealed_stage_that_asks_for_them_and_to_no_other(
    granted: Place, tmp_path: Path
) -> None:
    run = granted.run()
    admit = open_ref(run.store, run_all(run, "admit")["admit"].ref)
    shown = []
    for stage in STAGES:
        open_images = Door(stage, [admit], None, spill=tmp_path)
        for split in ("train", "validation"):
            try:
                open_images(split)
            except Uncharged:
                continue
            shown.append((stage.name, split))
    assert shown == [("evaluate", "train")]
    assert stage_named("evaluate").sealed
    with pytest.raises(Uncharged, match="is not sealed: it may see no sensitive image without a charge"):
        replace(stage_named("synthesize"), opens=("train",))


def test_test_images_stay_closed_for_every_stage_that_is_not_sealed(granted: Place, tmp_path: Path) -> None:
    run = granted.run()
    admit = open_ref(run.store, run_all(run, "admit")["admit"].ref)
    opened = set()
    for stage in STAGES:
        open_images = Door(stage, [admit], None, spill=tmp_path)
        if "test" in stage.opens:
            images, labels = open_images("test")
            assert len(images) == len(labels) > 0
            opened.add(stage.name)
        else:
            with pytest.raises(Uncharged, match="not sealed"):
                open_images("test")
    assert opened == {stage.name for stage in STAGES if stage.sealed} - {"admit"}


def test_only_a_sealed_stage_opens_training_images_without_a_charge(granted: Place, tmp_path: Path) -> None:
    run = granted.run()
    admit = open_ref(run.store, run_all(run, "admit")["admit"].ref)
    for stage in STAGES:
        open_images = Door(stage, [admit], None, spill=tmp_path)
        if stage.name == "evaluate":
            images, labels = open_images("train")
            assert len(images) == len(labels) == 144
        else:
            with pytest.raises(Uncharged, match="has no reservation"):
                open_images("train")
    # No other can even say that it does, nor get there by being relabelled, nor see what was not named.
    with pytest.raises(Uncharged, match="downstream is not sealed"):
        dataclasses.replace(stage_named("downstream"), opens=("train",))
    with pytest.raises(Uncharged, match="evaluate is not sealed"):
        dataclasses.replace(stage_named("evaluate"), sealed=False)
    released = copy.copy(stage_named("evaluate"))
    object.__setattr__(released, "sealed", False)
    with pytest.raises(Uncharged, match="no reservation"):
        Door(released, [admit], None, spill=tmp_path)("train")
    with pytest.raises(Uncharged, match="no reservation"):
        Door(stage_named("evaluate"), [admit], None, spill=tmp_path)("validation")


def test_training_images_open_under_a_live_reservation_only(granted_copy: Place, tmp_path: Path) -> None:
    run = granted_copy.run()
    admit = open_ref(run.store, run_all(run, "admit")["admit"].ref)
    query = stage_named("query")
    with pytest.raises(Uncharged, match="has no reservation"):
        Door(query, [admit], None, spill=tmp_path)("train")
    with pytest.raises(Uncharged, match="has no reservation"):
        Door(stage_named("evaluate"), [admit], None, spill=tmp_path)("validation")
    with pytest.raises(Uncharged, match="no sensitive images"):
        Door(query, [], None, spill=tmp_path)("train")
    ledger = granted_copy.ledger
    charge = HistogramQuery(num_votes=1, num_classes=3, num_categories=62, noise_multiplier=50.0).event
    plan = Plan(id="plan-of-this-test", epsilon=1.0, delta=1e-4, intends=(charge,))
    live = ledger.reserve(stage="query", key="0" * 64, event=charge, plan=plan, num_images=144, run="test")
    images, labels = Door(query, [admit], live, spill=tmp_path)("train")
    assert len(images) == len(labels) == 144
    with pytest.raises(Uncharged, match="not sealed"):
        Door(query, [admit], live, spill=tmp_path)("test")
    ledger.settle(live, artifact="0" * 64)
    with pytest.raises(PrivacyRefused):
        Door(query, [admit], live, spill=tmp_path)("train")


# ------------------------------------------------------------------ randomness for tests


def test_noise_that_can_be_made_again_voids_the_guarantee(pretrained_copy: Place) -> None:
    results = run_all(pretrained_copy.run(insecure=InsecureRandomForTests(1)))
    release = pretrained_copy.release
    assert json.loads((release / "certificate.json").read_text())["guarantee"] == "none"
    checks = verify_release(read_release(Store.open(str(release))), pretrained_copy.store)
    assert [check.step for check in checks if check.outcome == "failed"] == ["promise", "ledger", "store"]
    artifact = find(pretrained_copy.store, "finetune", results["finetune"].ref.key, False)
    assert artifact is not None
    assert artifact.read_json("generator.json")["guarantee"] == "none"
    assert "no privacy guarantee" in (release / "report.html").read_text().lower()


def test_a_query_with_noise_that_can_be_made_again_says_so(granted_copy: Place) -> None:
    results = run_all(granted_copy.run(insecure=InsecureRandomForTests(1)), "query")
    query = open_ref(granted_copy.store, results["query"].ref).read_json("query.json")
    assert query["guarantee"] == "none"
