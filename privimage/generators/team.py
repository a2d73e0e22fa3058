"""Several devices that compute one sum: the stage's own process, and one more process for each further device.

The first process decides everything: which images, which weights, which seeds. It sends them to the others; each adds
up its share of the work; the shares are added on the first device. So all randomness, all noise, and all state that is
saved are in one place, and the number of devices changes results by rounding only.

NCCL between GPUs, gloo otherwise. Messages stay on this machine: the processes meet through a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from privimage.errors import PrivimageError

__all__ = ["Team", "Work", "one_process", "team_of"]

_PATIENCE = timedelta(minutes=30)


class Work(Protocol):
    """What is added up; sent to the other processes once, so it has to be picklable."""

    def to(self, device: torch.device) -> None:
        """Move what is needed for computing to a device; called once in each process."""
        ...

    def share(self, weights: Tensor, job: Tensor, part: int, parts: int) -> Tensor:
        """The `part`-th of `parts` shares of a sum, as a float32 vector on the device.

        All shares together are the sum, whatever `parts` is. Must not depend on anything but its arguments.

        Args:
            weights: all weights in one float32 vector, on the device.
            job: int64, 1-d, on the CPU: what is to be added up, in the work's own words.
        """
        ...


class Team:
    """Computes sums; made by `team_of` or `one_process`."""

    def __init__(self, work: Work, device: torch.device, size: int, others: Sequence[BaseProcess]) -> None:
        self._work, self._device, self._size, self._others = work, device, size, others

    def sum(self, weights: Tensor, job: Tensor) -> Tensor:
        """The sum that `job` describes, on the first device; see `Work.share`.

        Raises:
            PrivimageError: another process died.
        """
        if self._size == 1:
            return self._work.share(weights, job, 0, 1)
        try:
            _send(weights, job, self._device)
            share = self._work.share(weights, job, 0, self._size)
            dist.reduce(share, 0)
        except RuntimeError as error:
            dead = sum(not process.is_alive() for process in self._others)
            if dead:
                raise PrivimageError(
                    f"{dead} of the {self._size} processes of this stage died. Run again: it goes on from the last "
                    "checkpoint; if memory was short, with a smaller performance.memory_gb."
                ) from error
            raise
        return share


def one_process(work: Work, device: torch.device) -> Team:
    """A team of this process alone."""
    work.to(device)
    return Team(work, device, 1, [])


@contextmanager
def team_of(work: Work, devices: Sequence[torch.device]) -> Iterator[Team]:
    """A team with one process for each device; the first is this one. The others end with the context."""
    if len(devices) == 1:
        yield one_process(work, devices[0])
        return
    # Processes are spawned, not forked: a forked one cannot use CUDA, and inherits locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="privimage-team-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        others = [
            context.Process(target=_serve, args=(work, devices, rank, meeting), daemon=True)
            for rank in range(1, len(devices))
        ]
        for process in others:
            process.start()
        try:
            _join(devices, 0, meeting)
            work.to(devices[0])
            yield Team(work, devices[0], len(devices), others)
            _send(None, None, devices[0])
        finally:
            if dist.is_initialized():
                with suppress(RuntimeError):  # a process that died
                    dist.destroy_process_group()
            for process in others:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
                    process.join()


def _serve(work: Work, devices: Sequence[torch.device], rank: int, meeting: str) -> None:
    """What another process does: shares of sums, until it is sent home or the first process is gone."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))
    try:
        _join(devices, rank, meeting)
        device = devices[rank]
        work.to(device)
        while (message := _receive(device)) is not None:
            weights, job = message
            dist.reduce(work.share(weights, job, rank, len(devices)), 0)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(devices: Sequence[torch.device], rank: int, meeting: str) -> None:
    on_gpus = all(device.type == "cuda" for device in devices)
    if on_gpus:
        torch.cuda.set_device(devices[rank])
    dist.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=meeting, rank=rank, world_size=len(devices), timeout=_PATIENCE
    )


def _send(weights: Tensor | None, job: Tensor | None, device: torch.device) -> None:
    """To all other processes; None: go home."""
    if weights is None or job is None:
        dist.broadcast(torch.tensor([-1, -1], device=device), 0)
        return
    dist.broadcast(torch.tensor([len(weights), len(job)], device=device), 0)
    dist.broadcast(weights.contiguous(), 0)
    dist.broadcast(job.to(device), 0)


def _receive(device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Counterpart of `_send`."""
    lengths = torch.empty(2, dtype=torch.int64, device=device)
    dist.broadcast(lengths, 0)
    if lengths[0] < 0:
        return None
    weights = torch.empty(int(lengths[0]), device=device)
    dist.broadcast(weights, 0)
    job = torch.empty(int(lengths[1]), dtype=torch.int64, device=device)
    dist.broadcast(job, 0)
    return weights, job.cpu()
