"""What nobody needs is found and deleted; what was paid for, is in use or may be in use stays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from privimage.errors import ArtifactDamaged, LedgerBroken
from privimage.privacy.budget import Plan
from privimage.running.housekeeping import delete, find_garbage, ledger_states
from privimage.running.runner import run_all
from privimage.store.artifacts import list_artifacts
from privimage.store.checkpoints import Checkpoints
from privimage.store.files import Store
from tests.pipeline_fixtures import Place

LATER = datetime.now(UTC) + timedelta(days=31)
MUCH_LATER = LATER + timedelta(days=31)


def folders(place: Place, now: datetime = LATER) -> dict[str, bool]:
    """Kind and stage of what was found, and whether it is due."""
    found = find_garbage(place.store, keep_days=30, now=now)
    return {f"{item.kind} {item.folder.split('artifacts/')[-1].split('/')[0]}": item.due for item in found}


def test_a_finished_run_leaves_nothing_to_delete(finished_copy: Place) -> None:
    assert folders(finished_copy) == folders(finished_copy, MUCH_LATER) == {}


def test_what_only_an_abandoned_run_used_is_due_once_it_is_old(finished_copy: Place) -> None:
    before = {artifact.ref for artifact in list_artifacts(finished_copy.store)}
    run_all(finished_copy.run("classifier.epochs=2"), "index")
    made = {artifact.ref for artifact in list_artifacts(finished_copy.store)} - before
    assert {ref.stage for ref in made} == {"classifier", "index"}
    assert folders(finished_copy, datetime.now(UTC)) == {"artifact classifier": False, "artifact index": False}
    garbage = find_garbage(finished_copy.store, keep_days=30, now=LATER)
    assert all(item.due for item in garbage)
    assert len(delete(finished_copy.store, garbage)) == 2
    assert {artifact.ref for artifact in list_artifacts(finished_copy.store)} == before
    # Nothing of the other run has to be made again.
    assert all(result.reused for result in run_all(finished_copy.run()).values())


def test_what_was_paid_for_stays_though_no_release_has_it(pretrained_copy: Place) -> None:
    found = folders(pretrained_copy)
    assert {"artifact index", "artifact select", "artifact pretrain"} == set(found)  # free to make again
    delete(pretrained_copy.store, find_garbage(pretrained_copy.store, keep_days=30, now=LATER))
    kept = {artifact.ref.stage for artifact in list_artifacts(pretrained_copy.store)}
    assert kept == {"public", "admit", "classifier", "query"}
    results = run_all(pretrained_copy.run())
    assert results["query"].reused and not results["index"].reused
    assert pretrained_copy.kinds.count("reserve query") == 1


def test_files_that_a_killed_writer_left_go_in_a_later_run_only(finished_copy: Place) -> None:
    place = finished_copy
    whole = next((place.folder / "artifacts" / "index").glob("*/payload-*"))
    left = whole.with_name("payload-00000000")
    shutil.copytree(whole, left)
    half = place.folder / "artifacts" / "index" / "feed" / "payload-11111111"
    shutil.copytree(whole, half)
    first = find_garbage(place.store, keep_days=30, now=LATER)
    assert [item.kind for item in first] == ["payload", "payload"] and not any(item.due for item in first)
    assert delete(place.store, first) == []
    assert len(delete(place.store, find_garbage(place.store, keep_days=30, now=MUCH_LATER))) == 2
    assert not left.exists() and not half.exists() and whole.exists()
    assert find_garbage(place.store, keep_days=30, now=MUCH_LATER) == []


def test_checkpoints_stay_while_somebody_may_go_on_with_them(pretrained_copy: Place) -> None:
    place = pretrained_copy
    ledger, (query, *_) = place.ledger, [entry for entry in place.entries if entry.kind == "reserve"]
    fine_tuned = {"stage": "finetune", "key": "feed" * 16}
    reservation = ledger.reserve(
        **fine_tuned,
        event=query.event,
        plan=replace(Plan.from_json(query.body["plan"]), id="plan-test"),
        num_images=query.body["num_images"],
        run="test",
    )
    Checkpoints(place.store, **fine_tuned, sealed=True).save(1, b"private")
    Checkpoints(place.store, "pretrain", "cafe" * 16, sealed=False).save(1, b"public")
    found = [item for item in find_garbage(place.store, keep_days=30, now=LATER) if item.kind == "checkpoint"]
    assert [item.folder for item in found] == [f"checkpoints/pretrain/{'cafe' * 16}"]
    ledger.void(reservation, reason="a test")
    found = [item for item in find_garbage(place.store, keep_days=30, now=LATER) if item.kind == "checkpoint"]
    assert [item.why for item in found] == ["training that nobody finished", "no open reservation goes on with it"]


def test_a_manifest_that_cannot_be_read_stops_it_before_anything_is_called_garbage(finished_copy: Place) -> None:
    manifest = next(finished_copy.folder.glob("artifacts/pretrain/*/manifest.json"))
    manifest.write_text("{")
    with pytest.raises(ArtifactDamaged):
        find_garbage(finished_copy.store, keep_days=30, now=LATER)


def test_ledgers_are_verified(finished_copy: Place) -> None:
    (state,) = ledger_states(finished_copy.store)
    assert (state.entries, state.granted, state.open_reservations) == (5, 3.0, 0)
    assert 0 < state.share < 1
    entry = next(finished_copy.folder.glob("ledger/*/entries/000003.json"))
    entry.write_bytes(entry.read_bytes().replace(b'"run"', b'"ran"', 1))
    with pytest.raises(LedgerBroken):
        ledger_states(finished_copy.store)


def test_an_empty_store_of_each_kind_has_neither(store: Store) -> None:
    assert ledger_states(store) == [] == find_garbage(store, keep_days=30)
