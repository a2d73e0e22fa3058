"""Crashes, with real processes that are killed: nothing is lost that was paid for, nothing is paid twice in silence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privimage.errors import ArtifactDamaged, BudgetExceeded, PrivacyRefused
from privimage.generators.training.ema import ema_update
from privimage.pipeline.table import stage_named
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.running.runner import run_all
from privimage.running.runs import stage_key
from tests.pipeline_fixtures import Answer, Place

pytestmark = pytest.mark.slow

LONG_FINETUNING = (
    "generator.finetune.num_steps=60",
    "generator.finetune.checkpoint_steps=5",
    "generator.finetune.restart_allowance=10",
)
LONG_PRETRAINING = ("generator.pretrain.num_steps=120",)
PATIENCE = 90.0

# Training saves on a clock; here after each step.
EAGER = "performance.checkpoint_seconds=0"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `privimage run` in a process of its own; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def call(place: Place, *overrides: str, until: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "privimage.cli", "run", *place.options(EAGER, *overrides), "--until", until]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def kill_at_first_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill -9 as soon as there is a checkpoint below `folder`."""
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob("*/step-*.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL


def newest_step(folder: Path) -> int:
    return max(int(file.stem.removeprefix("step-")) for file in folder.glob("*/step-*.ckpt"))


def test_a_run_that_is_killed_in_fine_tuning_goes_on_from_its_checkpoint_within_its_budget(
    pretrained_copy: Place, start: Start, privimage: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, checkpoints = pretrained_copy, pretrained_copy.folder / "private" / "checkpoints" / "finetune"
    kill_at_first_checkpoint(start(place, *LONG_FINETUNING, until="finetune"), checkpoints)
    assert place.kinds == ["grant", "reserve query", "settle", "reserve finetune"]
    assert not (place.folder / "artifacts" / "finetune").exists()
    done = newest_step(checkpoints)
    assert 0 < done < 60

    steps = []

    def counted(*arguments: Any) -> Any:
        steps.append(1)
        return noisy_mean_gradient(*arguments)

    monkeypatch.setattr("privimage.generators.training.finetune.noisy_mean_gradient", counted)
    answer = privimage("run", *place.options(*LONG_FINETUNING))
    assert answer.code == 0, answer.err
    assert answer.err.count("reused, made") == 7
    assert len(steps) == 60 - done
    assert place.kinds == ["grant", "reserve query", "settle", "reserve finetune", "resume", "settle"]
    resume = place.entries[4].body
    assert (resume["attempt"], resume["lost_steps"]) == (2, 5)
    assert all(plan.epsilon <= plan.target == 1.0 for plan in place.ledger.spent().plans)
    assert not list((place.folder / "private" / "checkpoints").rglob("*.ckpt"))
    verified = privimage("verify", place.release, "--store", place.folder)
    assert verified.code == 0, verified.out


def test_a_run_that_is_killed_in_pre_training_ends_with_the_very_weights_it_would_have_had(
    pretrained: Place, pretrained_copy: Place, tmp_path: Path, start: Start
) -> None:
    place, checkpoints = pretrained_copy, pretrained_copy.folder / "checkpoints" / "pretrain"
    kill_at_first_checkpoint(start(place, *LONG_PRETRAINING, until="pretrain"), checkpoints)
    assert newest_step(checkpoints) < 120
    resumed = run_all(place.run(*LONG_PRETRAINING), "pretrain")["pretrain"]
    undisturbed = pretrained.copy_to(tmp_path / "undisturbed")
    straight = run_all(undisturbed.run(*LONG_PRETRAINING), "pretrain")["pretrain"]
    assert not resumed.reused and not straight.reused
    assert resumed.ref == straight.ref
    assert place.entries == pretrained.entries


def test_two_processes_at_once_never_break_the_store_or_the_ledger(
    pretrained_copy: Place, start: Start, privimage: Callable[..., Answer]
) -> None:
    place, settings = pretrained_copy, ("generator.finetune.num_steps=16", "generator.finetune.restart_allowance=12")
    processes = [start(place, *settings, until="finetune") for _ in range(2)]
    ends = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in processes]
    assert {code for _, code in ends} <= {0, 3}, ends
    assert all("Traceback" not in err for err, _ in ends), ends
    answer = privimage("run", *place.options(*settings))
    assert answer.code == 0, (answer.err, ends)
    assert set(place.ledger.states().values()) == {"settled"}
    assert place.kinds.count("reserve finetune") == 1
    assert all(plan.epsilon <= plan.target == 1.0 for plan in place.ledger.spent().plans)
    verified = privimage("verify", place.release, "--store", place.folder)
    assert verified.code == 0, verified.out


# ------------------------------------------------------------------ what needs no process


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[Place, int], None]:
    """Fine-tunes so many steps and stops as Ctrl-C would."""

    def call(place: Place, steps: int) -> None:
        left = steps

        def limited(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return noisy_mean_gradient(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("privimage.generators.training.finetune.noisy_mean_gradient", limited)
            with pytest.raises(KeyboardInterrupt):
                run_all(place.run(), "finetune")

    return call


Stop = Callable[[Place, int], None]


def test_an_attempt_that_was_taken_over_cannot_give_back_what_the_other_one_uses(
    pretrained_copy: Place, stopped_after: Stop
) -> None:
    stopped_after(pretrained_copy, 1)
    ledger = pretrained_copy.ledger
    first = next(entry for entry in ledger.entries() if entry.kind == "reserve" and entry.body["stage"] == "finetune")
    (reservation,) = ledger.open_reservations("finetune", first.body["key"])
    ledger.resume(reservation)
    with pytest.raises(PrivacyRefused, match="taken over by another attempt"):
        ledger.void(reservation, reason="the first attempt failed before it opened an image")
    assert ledger.states()[reservation.id] == "open"


def test_restarts_end_when_their_allowance_is_used_up(pretrained_copy: Place, stopped_after: Stop) -> None:
    for _ in range(3):  # the first attempt, and two restarts that may each repeat 2 of the 4 extra steps
        stopped_after(pretrained_copy, 1)
    before = pretrained_copy.entries
    with pytest.raises(BudgetExceeded, match="4 of its 4 restart steps are used") as caught:
        run_all(pretrained_copy.run(), "finetune")
    assert caught.value.exit_code == 3
    assert pretrained_copy.entries == before
    assert pretrained_copy.ledger.spent().epsilon <= 1.0


def test_another_draw_starts_anew_after_that_and_is_charged_in_full(
    pretrained_copy: Place, stopped_after: Stop
) -> None:
    for _ in range(3):
        stopped_after(pretrained_copy, 1)
    results = run_all(pretrained_copy.run(draws={"finetune": 2}), "finetune")
    assert not results["finetune"].reused
    assert [plan.target for plan in pretrained_copy.ledger.spent().plans] == [1.0, 1.0]


def damage(checkpoint: Path) -> None:
    """Twice is not at all."""
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(data)


def checkpoint_of_step_2(place: Place) -> Path:
    (checkpoint,) = (place.folder / "private" / "checkpoints").glob("finetune/*/step-000000002.ckpt")
    return checkpoint


def test_a_damaged_checkpoint_is_passed_over_and_the_steps_it_held_are_charged_to_the_allowance(
    pretrained_copy: Place, stopped_after: Stop, privimage: Callable[..., Answer]
) -> None:
    stopped_after(pretrained_copy, 3)
    damage(checkpoint_of_step_2(pretrained_copy))
    answer = privimage("run", *pretrained_copy.options(), "--until", "finetune")
    assert answer.code == 0, answer.err
    assert "step-000000002.ckpt is damaged; going on from the beginning." in answer.err
    resume = next(entry for entry in pretrained_copy.entries if entry.kind == "resume")
    assert resume.body["lost_steps"] == 4, "2 that the damaged one held, and 2 that may have come after it"
    assert pretrained_copy.ledger.spent().epsilon <= 1.0


@pytest.mark.parametrize("lost", ["damaged", "deleted"])
def test_where_the_allowance_does_not_hold_them_nothing_is_repeated_and_the_checkpoint_may_be_restored(
    pretrained_copy: Place, stopped_after: Stop, lost: str
) -> None:
    stopped_after(pretrained_copy, 3)
    stopped_after(pretrained_copy, 1)
    before, checkpoint = pretrained_copy.entries, checkpoint_of_step_2(pretrained_copy)
    data = checkpoint.read_bytes()
    if lost == "damaged":
        damage(checkpoint)
    else:
        checkpoint.unlink()
    with pytest.raises(BudgetExceeded, match="2 of its 4 restart steps are used, and going on may repeat 4 more"):
        run_all(pretrained_copy.run(), "finetune")
    assert pretrained_copy.entries == before
    checkpoint.write_bytes(data)
    assert not run_all(pretrained_copy.run(), "finetune")["finetune"].reused
    assert pretrained_copy.ledger.spent().epsilon <= 1.0


# ------------------------------------------------------------------ public training

SAVED_OFTEN = ("generator.pretrain.num_steps=12", "performance.checkpoint_steps=2")


@pytest.fixture
def stopped_in_pretraining(pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the checkpoints of steps 4 and 6."""
    steps = []

    def limited(*arguments: Any, **settings: Any) -> None:
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        ema_update(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("privimage.generators.training.pretrain.ema_update", limited)
        with pytest.raises(KeyboardInterrupt):
            run_all(pretrained_copy.run(*SAVED_OFTEN), "pretrain")
    (newest,) = (pretrained_copy.folder / "checkpoints" / "pretrain").glob("*/step-000000006.ckpt")
    return newest.parent


def test_a_damaged_checkpoint_of_pre_training_is_passed_over_and_the_weights_are_the_same(
    pretrained: Place,
    pretrained_copy: Place,
    stopped_in_pretraining: Path,
    tmp_path: Path,
    privimage: Callable[..., Answer],
) -> None:
    damage(stopped_in_pretraining / "step-000000006.ckpt")
    answer = privimage("run", *pretrained_copy.options(*SAVED_OFTEN), "--until", "pretrain")
    assert answer.code == 0, answer.err
    assert "step-000000006.ckpt is damaged; going on from step 4." in answer.err
    resumed = run_all(pretrained_copy.run(*SAVED_OFTEN), "pretrain")["pretrain"]
    straight = run_all(pretrained.copy_to(tmp_path / "undisturbed").run(*SAVED_OFTEN), "pretrain")["pretrain"]
    assert resumed.reused and not straight.reused
    assert resumed.ref == straight.ref


def test_a_checkpoint_of_another_run_is_refused(pretrained_copy: Place, stopped_in_pretraining: Path) -> None:
    other = ("generator.pretrain.num_steps=13", "performance.checkpoint_steps=2")
    run = pretrained_copy.run(*other)
    refs = {name: result.ref for name, result in run_all(pretrained_copy.run(), "select").items()}
    key = stage_key(stage_named("pretrain"), run, {name: refs[name].digest for name in ("public", "select")})
    shutil.copytree(stopped_in_pretraining, stopped_in_pretraining.parent / key)
    with pytest.raises(ArtifactDamaged, match=f"step 6 in checkpoints/pretrain/{key} was saved by another run"):
        run_all(run, "pretrain")
