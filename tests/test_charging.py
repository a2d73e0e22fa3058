"""What pays for an attempt: the door that was opened under it, and the checkpoint that it goes on from."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from privimage.errors import BudgetExceeded, PrivimageError, Uncharged
from privimage.generators.training import gradients as generation
from privimage.pipeline.stage import Charge
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.mechanisms import ClassSums
from privimage.running import charging, plan
from privimage.running.charging import check_paid
from privimage.running.runner import run_all
from privimage.store.artifacts import list_artifacts, remove
from privimage.store.files import Store
from privimage.store.tensors import pack, unpack
from tests.pipeline_fixtures import Place
from tests.privacy.test_ledger import PLAN, TRAINING, granted, reserve


@pytest.fixture
def interrupted(pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Fine-tuning was killed after it had saved and noted its checkpoint of step 2 of 4."""
    real = generation.finetune

    def killed(*arguments: object, on_step: Callable[[object], None], **more: object) -> object:
        def once(state: object) -> None:
            on_step(state)
            if state.step == 2:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        return real(*arguments, on_step=once, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generation, "finetune", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(pretrained_copy.run(), "finetune")
    assert pretrained_copy.kinds[-1] == "reserve finetune"
    return pretrained_copy


def test_what_was_interrupted_goes_on_from_its_own_checkpoint(interrupted: Place) -> None:
    assert not run_all(interrupted.run(), "finetune")["finetune"].reused
    assert interrupted.kinds[-2:] == ["resume", "settle"]


def test_a_checkpoint_that_another_reservation_paid_for_is_not_gone_on_from(
    interrupted: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are in another charge, so that what is released would cost both, and this ledger holds one."""
    real = generation._latest

    def of_another(checkpoints: object, context: object) -> object:
        saved = real(checkpoints, context)  # type: ignore[arg-type]
        assert saved is not None
        tensors, about = unpack(saved.data)
        return type(saved)(step=saved.step, data=pack(tensors, {**about, "reservation": "another"}))

    monkeypatch.setattr(generation, "_latest", of_another)
    with pytest.raises(Uncharged, match="paid for by another reservation"):
        run_all(interrupted.run(), "finetune")
    assert "settle" not in interrupted.kinds[interrupted.kinds.index("reserve finetune") :]


def test_a_checkpoint_that_vanishes_after_it_was_accounted_for_is_missed(
    interrupted: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning, steps would be run again that no allowance holds."""
    monkeypatch.setattr(generation, "_latest", lambda checkpoints, context: None)
    with pytest.raises(Uncharged, match="vanished while it was resumed; run again"):
        run_all(interrupted.run(), "finetune")


def test_no_attempt_runs_further_than_its_block_past_a_checkpoint_that_is_noted_in_the_ledger(
    pretrained_copy: Place,
) -> None:
    """What an attempt may lose is what the allowance was charged for: `checkpoint_steps`, here 2 of 4."""
    run_all(pretrained_copy.run(), "finetune")
    noted = sorted(file.stem for file in pretrained_copy.folder.glob("ledger/*/steps/*/*.json"))
    assert noted == ["000000002", "000000004"]


def test_a_reservation_pays_for_no_other_mechanism_than_it_was_made_for() -> None:
    """Another version of the code may find, under the same key, a charge that an attempt with less noise left."""
    ledger = granted(Store.open(f"memory://{secrets.token_hex(6)}"))
    reserve(ledger, TRAINING, stage="finetune", key="k", restart_allowance=4, checkpoint_steps=2)
    other = ClassSums(num_images=1000, num_classes=2, dimension=3, noise_multiplier=1.0)
    charge = Charge(mechanism=other, plan=PLAN, num_images=1000, restart_allowance=4, checkpoint_steps=2)
    before = ledger.entries()
    with pytest.raises(Uncharged, match="was made for another mechanism"):
        charging.pay(
            "finetune", "k", charge, ledger, run_name="a run", latest_checkpoint=lambda: 0, random=SecretRandom()
        )
    assert ledger.entries() == before


def test_a_sealed_stage_tells_foreign_errors_in_private_though_it_came_through_no_door(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admission reads the sensitive files themselves, and libraries name them."""

    def fails(*_: object) -> object:
        raise RuntimeError("cannot decode Mustermann_Max.png")

    monkeypatch.setattr("privimage.stages.admit.admit_sensitive", fails)
    place = Place(config=tiny_config, folder=tmp_path / "store")
    with pytest.raises(PrivimageError, match="which is private") as caught:
        run_all(place.run(), "admit")
    assert "Mustermann" not in str(caught.value) and caught.value.__context__ is None


def test_a_paid_artifact_that_is_gone_is_missed_by_the_charge_itself_too(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan finds it before anything is trained; but a plan is no guard, and another process may delete it after."""
    key = run_all(granted_copy.run(), "query")["query"].ref.key
    remove(granted_copy.store, "query", key, force=True)
    monkeypatch.setattr(plan, "check_not_settled", lambda ledger, stage, key: None)
    with pytest.raises(Uncharged, match="its artifact is gone: restore it"):
        run_all(granted_copy.run(), "query")
    assert granted_copy.kinds == ["grant", "reserve query", "settle"]


def test_what_does_not_fit_is_refused_by_the_charge_itself_too(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(granted_copy.run(), "query")
    monkeypatch.setattr("privimage.running.runner.check_affordable", plan.plan_run)
    with pytest.raises(BudgetExceeded, match="Nothing was charged"):
        run_all(granted_copy.run("privacy.epsilon=2.9", draws={"query": 2}), "query")
    assert granted_copy.kinds == ["grant", "reserve query", "settle"]


def test_the_door_counts_as_opened_before_the_first_image_is_read(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails in reading them has seen some: the charge stays, and what it says stays private."""

    def fails(*_: object, **__: object) -> object:
        raise OSError("row 17 of shard secret-4711 is damaged")

    monkeypatch.setattr(charging, "read_images", fails)
    with pytest.raises(PrivimageError, match="which is private") as caught:
        run_all(granted_copy.run(), "query")
    assert "4711" not in str(caught.value) and caught.value.__context__ is None
    assert granted_copy.kinds[-1] == "reserve query"
    assert granted_copy.ledger.spent().epsilon > 0


def test_an_artifact_that_this_ledger_never_paid_for_is_not_reused(pretrained: Place) -> None:
    """By itself, without the comparison of all ledgers: another ledger of the store may hold what paid."""
    (query,) = [artifact for artifact in list_artifacts(pretrained.store) if artifact.ref.stage == "query"]
    check_paid(query, pretrained.ledger)
    elsewhere = granted(Store.open(f"memory://{secrets.token_hex(6)}"))
    for ledger in (elsewhere, None):
        with pytest.raises(Uncharged, match=r"not reused\. Restore the ledger"):
            check_paid(query, ledger)
