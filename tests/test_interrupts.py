"""Asked to stop, a run stops where nothing is lost, and goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privimage.errors import Stopped
from privimage.generators.training.ema import ema_update
from privimage.machine.interrupts import StopRequest, stop_on_signals
from privimage.privacy.dpsgd import noisy_mean_gradient
from privimage.running.runner import run_all
from tests.pipeline_fixtures import Answer, Place

pytestmark = pytest.mark.slow

PATIENCE = 90.0
# Says when it is in the middle of fine-tuning, where a signal is answered at the end of a step.
TELLING = """
import sys
import privimage.generators.training.finetune as module
from privimage.cli import main
step = module.noisy_mean_gradient
def told(*arguments):
    sys.stderr.write("STEPPING\\n"); sys.stderr.flush()
    return step(*arguments)
module.noisy_mean_gradient = told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_a_signal_stops_fine_tuning_after_a_step_and_nothing_of_the_allowance_is_used(
    pretrained_copy: Place, privimage: Callable[..., Answer], number: signal.Signals, processes: int
) -> None:
    settings = pretrained_copy.options(
        "generator.finetune.num_steps=400",
        "generator.finetune.checkpoint_steps=300",
        "generator.finetune.restart_allowance=0",
        f"performance.num_devices={processes}",
    )
    command = [sys.executable, "-c", TELLING, "run", *settings, "--until", "finetune"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + PATIENCE
        while "STEPPING" not in process.stderr.readline():
            assert process.poll() is None and time.monotonic() < deadline
        os.killpg(process.pid, number)  # as a terminal does, or a service manager: all its processes get it
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "privimage: Stopped as asked; the same command goes on from here." in err
    assert "Traceback" not in err
    assert pretrained_copy.kinds == ["grant", "reserve query", "settle", "reserve finetune", "pause"]
    stopped_at = pretrained_copy.entries[-1].body["step"]
    assert 0 < stopped_at < 400
    (checkpoint,) = (pretrained_copy.folder / "private" / "checkpoints" / "finetune").rglob("*.ckpt")
    assert checkpoint.stem == f"step-{stopped_at:09d}"
    shown = privimage("ledger", "show", *pretrained_copy.options())
    assert f"attempt 1 stopped after step {stopped_at}, nothing lost" in shown.out


def test_a_paused_run_goes_on_without_an_allowance(pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place, steps = pretrained_copy, []
    settings = ("generator.finetune.restart_allowance=0",)
    first = place.run(*settings)

    def asked_at_the_first(*arguments: Any) -> Any:
        steps.append(1)
        first.stop.ask()
        return noisy_mean_gradient(*arguments)

    monkeypatch.setattr("privimage.generators.training.finetune.noisy_mean_gradient", asked_at_the_first)
    with pytest.raises(Stopped):
        run_all(first, "finetune")
    assert len(steps) == 1
    run_all(place.run(*settings), "finetune")
    assert len(steps) == 4
    assert place.kinds[-4:] == ["reserve finetune", "pause", "resume", "settle"]
    assert place.entries[-2].body["lost_steps"] == 0


def test_pre_training_that_is_asked_to_stop_ends_with_the_very_weights_it_would_have_had(
    pretrained: Place, pretrained_copy: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = "generator.pretrain.num_steps=12"
    first, steps = pretrained_copy.run(longer), []

    def asked_at_the_fifth(*arguments: Any, **more: Any) -> None:
        steps.append(1)
        if len(steps) == 5:
            first.stop.ask()
        ema_update(*arguments, **more)

    monkeypatch.setattr("privimage.generators.training.pretrain.ema_update", asked_at_the_fifth)
    with pytest.raises(Stopped):
        run_all(first, "pretrain")
    resumed = run_all(pretrained_copy.run(longer), "pretrain")["pretrain"]
    assert len(steps) == 12
    straight = run_all(pretrained.copy_to(tmp_path / "undisturbed").run(longer), "pretrain")["pretrain"]
    assert not resumed.reused and not straight.reused
    assert resumed.ref == straight.ref


def test_a_run_that_was_asked_before_it_began_does_nothing(granted_copy: Place) -> None:
    run = granted_copy.run()
    run.stop.ask()
    with pytest.raises(Stopped):
        run_all(run)
    assert granted_copy.kinds == ["grant"]


def test_a_signal_interrupts_at_once_where_nobody_would_answer_it() -> None:
    request = StopRequest()
    with stop_on_signals(request), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not request.asked


def test_a_second_signal_interrupts_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    request = StopRequest()
    with stop_on_signals(request), request.answered_between_steps():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    with pytest.raises(Stopped):
        request.check()


def test_the_handlers_from_before_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(StopRequest()):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def other() -> None:
        with stop_on_signals(StopRequest()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]
