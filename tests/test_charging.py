"""What pays for an attempt: the door that was opened under it, and the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from privimage import charging, plan
from privimage.errors import BudgetExceeded, PrivimageError, Uncharged
from privimage.runner import run_all
from privimage.stages import generation
from privimage.store.artifacts import remove
from privimage.store.tensors import pack, unpack
from tests.pipeline_fixtures import Place


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
    monkeypatch.setattr("privimage.runner.check_affordable", plan.plan_run)
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
