"""Several processes compute what one does, and none is left behind when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from privimage.errors import PrivimageError
from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.training.compute import ComputeSettings
from privimage.generators.training.finetune import finetune, start_state
from privimage.generators.training.pretrain import evenly, pretrain
from privimage.generators.training.workers import Job, workers_of
from privimage.methods.generators.diffusion import DiffusionFinetune, DiffusionPretrain
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import DPSGDMechanism

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
IMAGES = 70  # several blocks, the last one smaller
NewDenoiser = Callable[..., Denoiser]


def on(processes: int) -> ComputeSettings:
    return ComputeSettings(devices=(CPU,) * processes)


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (IMAGES, 1, 8, 8), dtype=np.uint8), np.arange(IMAGES) % 2


def finetuned(denoiser: Denoiser, processes: int, *, noise: float = 1.0) -> Tensor:
    """What two steps released: their first moments are sums of noisy gradients."""
    mechanism = DPSGDMechanism(
        num_images=IMAGES,
        expected_batch_size=IMAGES // 2,
        num_steps=2,
        restart_allowance=0,
        max_grad_norm=0.5,
        noise_multiplier=noise,
    )
    state = finetune(
        denoiser,
        *images_and_labels(),
        mechanism,
        DiffusionFinetune(noise_samples=2, horizontal_flip=True, learning_rate=1e-5),
        state=start_state({name: tensor.detach() for name, tensor in denoiser.named_parameters()}),
        random=InsecureRandomForTests(3),
        on_step=lambda state: None,
        compute=on(processes),
    )
    return flat(state.exp_avg)


def pretrained(denoiser: Denoiser, processes: int) -> Tensor:
    images, labels = (torch.from_numpy(array) for array in images_and_labels())
    config = DiffusionPretrain(num_steps=2, batch_size=16, learning_rate=1e-5, horizontal_flip=True)
    state = pretrain(
        denoiser, images, evenly(labels), config, state=None, on_step=lambda state, loss: None, compute=on(processes)
    )
    return flat(state.exp_avg)


@pytest.mark.parametrize("processes", [2, 3])
def test_fine_tuning_in_several_processes_releases_what_one_does_with_noise_added_once(
    awake: NewDenoiser, processes: int
) -> None:
    alone = finetuned(awake(), 1)
    assert apart(alone, finetuned(awake(), processes)) <= 1e-5
    assert not multiprocessing.active_children()


def test_a_step_with_other_noise_or_other_weights_is_told_apart(awake: NewDenoiser) -> None:
    alone = finetuned(awake(), 1)
    assert apart(alone, finetuned(awake(), 1, noise=2**0.5)) > 1e-2
    assert apart(alone, finetuned(awake(seed=1), 1)) > 1e-2


def test_pre_training_in_several_processes_takes_the_steps_that_one_does(awake: NewDenoiser) -> None:
    assert apart(pretrained(awake(), 1), pretrained(awake(), 3)) <= 1e-5


@dataclass
class Counts:
    """Adds up ones; the last process ends where it is told to."""

    end: str = ""

    def to(self, device: torch.device) -> None:
        pass

    def share(self, weights: Tensor, job: Job, part: int, parts: int) -> Tensor:
        if self.end and part == parts - 1:
            if self.end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"the batch had {int(job['count'])} images")
        return torch.full((1,), float(len(range(part, int(job["count"]), parts))))


class CannotBeSent(Counts):
    def __setstate__(self, state: object) -> None:
        raise RuntimeError("not here")


def count(work: Counts, processes: int, to: int = 10) -> float:
    with workers_of(work, [CPU] * processes) as workers:
        return float(workers.sum(torch.zeros(1), {"count": torch.tensor(to)}))


def test_a_process_that_is_killed_is_an_error_at_once_that_leaves_nothing_behind() -> None:
    begun = time.monotonic()
    with pytest.raises(PrivimageError, match="1 of the 3 processes of this stage died. Run again"):
        count(Counts(end="killed"), 3)
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


def test_a_process_that_fails_tells_the_first_one_why_and_nobody_else(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="the batch had 10 images"):
        count(Counts(end="failed"), 2)
    assert "images" not in "".join(capfd.readouterr())


def test_a_process_that_cannot_start_is_an_error_and_nobody_waits_for_it() -> None:
    begun = time.monotonic()
    with pytest.raises(PrivimageError, match=r"did not start \(exit code 1\)"):
        count(CannotBeSent(), 2)
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


ENDLESS = """
import os, torch
from tests.generators.test_workers import CPU, Counts
from privimage.generators.training.workers import workers_of
if __name__ == "__main__":
    with workers_of(Counts(), [CPU] * 2) as workers:
        while True:
            workers.sum(torch.zeros(1), {"count": torch.tensor(10)})
            print(*(other.process.pid for other in workers._others), flush=True)
"""


def test_where_the_first_process_is_killed_the_others_end_too() -> None:
    first = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    other = int(first.stdout.readline())
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    deadline = time.monotonic() + 30
    while runs(other):
        assert time.monotonic() < deadline, "the other process goes on"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """A process that ended, and that nobody asks for its exit code, is a zombie (Z)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
