"""Training that is killed at random moments, again and again, ends with a whole artifact and an exact ledger."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from privimage.machine.progress import Progress, Ticker
from privimage.running.runner import run_all, run_stage
from privimage.running.runs import Run
from privimage.store.artifacts import ArtifactRef
from tests.pipeline_fixtures import Place

pytestmark = pytest.mark.slow

KILLS = 25
# Between the first step and the end: some steps, some checkpoints.
SECONDS = 0.06

Train = Callable[[Run, dict[str, ArtifactRef]], ArtifactRef]


def pretrain(run: Run, refs: dict[str, ArtifactRef]) -> ArtifactRef:
    return run_stage("pretrain", run, {name: refs[name] for name in ("public", "select")}).ref


def finetune(run: Run, refs: dict[str, ArtifactRef]) -> ArtifactRef:
    return run_stage("finetune", run, {name: refs[name] for name in ("admit", "query", "pretrain")}).ref


class Bomb(Progress):
    """Kills this process so many seconds after its first steps, wherever it is then."""

    def __init__(self, steps: int, seconds: float) -> None:
        self._steps_left = steps
        self._fuse = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))

    @contextmanager
    def ticker(self, description: str, total: int | None) -> Iterator[Ticker]:
        def tick(done: int, /, public_loss: float | None = None) -> None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self._fuse.start()

        yield tick


def attempt(
    place: Place, overrides: tuple[str, ...], train: Train, refs: dict[str, ArtifactRef], steps: int, seconds: float
) -> None:
    torch.set_num_threads(1)
    train(dataclasses.replace(place.run(*overrides), progress=Bomb(steps, seconds)), refs)


def kill_and_kill_again(place: Place, overrides: tuple[str, ...], train: Train, seed: int) -> dict[str, ArtifactRef]:
    """One process after the other is killed in `train`, which has begun in each of them; returns the inputs."""
    refs = {name: result.ref for name, result in run_all(place.run(), "pretrain").items()}
    moments = random.Random(seed)
    context = multiprocessing.get_context("forkserver")  # torch is loaded once, and no thread of it is forked
    context.set_forkserver_preload(
        ["tests.test_kills", "privimage.generators.training.gradients", "privimage.pipeline.charges"]
    )
    for _ in range(KILLS):
        # Some before their first checkpoint, most after it: however slow the machine, training gets on.
        arguments = (place, overrides, train, refs, moments.choice([1, 2, 3]), moments.uniform(0, SECONDS))
        process = context.Process(target=attempt, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    return refs


def test_pre_training_ends_with_the_very_weights_it_would_have_had(pretrained_copy: Place, tmp_path: Path) -> None:
    settings = ("generator.pretrain.num_steps=700", "performance.checkpoint_steps=2")
    undisturbed = pretrained_copy.copy_to(tmp_path / "undisturbed")
    refs = kill_and_kill_again(pretrained_copy, settings, pretrain, seed=1)
    assert list(pretrained_copy.folder.glob("checkpoints/pretrain/*/*.ckpt"))
    assert pretrain(pretrained_copy.run(*settings), refs) == pretrain(undisturbed.run(*settings), refs)
    assert not list(pretrained_copy.folder.glob("checkpoints/**/*.ckpt"))


def test_fine_tuning_ends_within_its_budget_with_every_lost_step_charged(pretrained_copy: Place) -> None:
    settings = (
        "generator.finetune.num_steps=200",
        "generator.finetune.checkpoint_steps=2",
        "generator.finetune.restart_allowance=50",
    )
    refs = kill_and_kill_again(pretrained_copy, settings, finetune, seed=2)
    assert list(pretrained_copy.folder.glob("private/checkpoints/finetune/*/*.ckpt"))
    assert finetune(pretrained_copy.run(*settings), refs).stage == "finetune"
    expected = ["grant", "reserve query", "settle", "reserve finetune", *["resume"] * KILLS, "settle"]
    assert pretrained_copy.kinds == expected
    assert [entry.body["lost_steps"] for entry in pretrained_copy.entries if entry.kind == "resume"] == [2] * KILLS
    assert all(plan.epsilon <= plan.target == 1.0 for plan in pretrained_copy.ledger.spent().plans)
    assert not list(pretrained_copy.folder.glob("private/checkpoints/**/*.ckpt"))
