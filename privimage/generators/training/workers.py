"""Several devices that compute one sum: the stage's own process, and one more process for each further device.

The first process decides everything: which images, which weights, which seeds. It sends them to the others; each adds
up its share of the work; the shares are added on the first device. So all randomness, all noise, and all state that is
saved are in one place, and the number of devices changes results by rounding only.

NCCL between GPUs, gloo otherwise. Messages stay on this machine: the processes meet through a file, and gloo is bound
to the loopback interface.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from privimage.errors import ConfigError, PrivimageError

__all__ = ["Job", "Work", "Workers", "workers_of"]

# How long one process waits for another that computes: longer than any step takes.
_PATIENCE = timedelta(minutes=30)

Job = Mapping[str, Tensor]


class Work(Protocol):
    """What is added up; sent to the other processes once, so it has to be picklable."""

    def to(self, device: torch.device) -> None:
        """Move what is needed for computing to a device; called once in each process."""
        ...

    def share(self, weights: Tensor, job: Job, part: int, parts: int) -> Tensor:
        """The `part`-th of `parts` shares of a sum, as a float32 vector on the device.

        All shares together are the sum, whatever `parts` is. Must not depend on anything but its arguments.

        Args:
            weights: all weights in one float32 vector, on the device.
            job: tensors on the CPU: what is to be added up, in the work's own words.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Other:
    """Another process, and the line on which it tells why it fails."""

    process: BaseProcess
    line: Connection

    def last_words(self) -> str:
        """What it told before it ended; empty if it was killed."""
        words = ""
        with suppress(EOFError):
            while self.line.poll():
                words += self.line.recv()
        return words


class Workers:
    """Computes sums; made by `workers_of`."""

    def __init__(self, work: Work, device: torch.device, others: Sequence[_Other]) -> None:
        self._work, self._device, self._others = work, device, others

    def sum(self, weights: Tensor, job: Job) -> Tensor:
        """The sum that `job` describes, on the first device; see `Work.share`.

        Raises:
            PrivimageError: another process was killed. RuntimeError: it failed; the text may say anything.
        """
        if not self._others:
            return self._work.share(weights, job, 0, 1)
        try:
            _send(weights, job, self._device)
            share = self._work.share(weights, job, 0, 1 + len(self._others))
            dist.reduce(share, 0)
        except RuntimeError:
            self._explain()
            raise
        return share

    def _explain(self) -> None:
        """Raise what broke the connection, if it was another process."""
        for other in self._others:
            other.process.join(timeout=1)  # it may be a moment from its end
        ended = {other: other.last_words() for other in self._others if other.process.exitcode is not None}
        killed = sum(not words for words in ended.values())
        if killed:
            raise PrivimageError(
                f"{killed} of the {1 + len(self._others)} processes of this stage died. Run again: it goes on from the "
                "last checkpoint; if memory was short, with a smaller performance.physical_batch_size."
            )
        if ended:
            raise RuntimeError("Another process of this stage failed:\n" + "\n".join(ended.values()))


@contextmanager
def workers_of(work: Work, devices: Sequence[torch.device]) -> Iterator[Workers]:
    """A workers with one process for each device; the first is this one. The others end with the context.

    Raises:
        ConfigError: this process is itself part of a torch.distributed group. PrivimageError: a process did not start.
    """
    if len(devices) == 1:
        work.to(devices[0])
        yield Workers(work, devices[0], [])
        return
    if dist.is_initialized():
        raise ConfigError("This process is part of a torch.distributed group: set performance.num_devices to 1.")
    # Processes are spawned, not forked: a forked one cannot use CUDA, and inherits locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="privimage-workers-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        others: list[_Other] = []
        try:
            for rank in range(1, len(devices)):
                line, end = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(work, devices, rank, meeting, end), daemon=True)
                process.start()
                end.close()
                others.append(_Other(process=process, line=line))
            for other in others:
                _await_start(other)
            _join(devices, 0, meeting)
            work.to(devices[0])
            yield Workers(work, devices[0], others)
            _send(None, None, devices[0])
        finally:
            if dist.is_initialized():
                with suppress(RuntimeError):  # a process that died
                    dist.destroy_process_group()
            _end(others)


def _end(others: Sequence[_Other]) -> None:
    """Wait a moment for them; kill who stays, also if this process is interrupted while it waits."""
    try:
        for other in others:
            other.process.join(timeout=5)
    finally:
        for other in others:
            other.process.kill()
            other.process.join()


def _await_start(other: _Other) -> None:
    """Until the process is up: nobody may wait at the meeting for one that cannot come."""
    try:
        other.line.recv()
    except EOFError:
        other.process.join()
        raise PrivimageError(
            f"A process of this stage did not start (exit code {other.process.exitcode}): see what it printed, or set "
            "performance.num_devices to 1."
        ) from None


class _Line(io.TextIOBase):
    """A stream to the first process: what a process prints when it fails may be private, and must not reach a log."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def write(self, text: str) -> int:
        with suppress(OSError):  # the first process is gone
            self._end.send(text)
        return len(text)


def _serve(work: Work, devices: Sequence[torch.device], rank: int, meeting: str, end: Connection) -> None:
    """What another process does: shares of sums, until it is sent home or the first process is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to all at once; the first process ends the step, then the others
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
    end.send("here")
    sys.stderr = _Line(end)
    _join(devices, rank, meeting)
    device = devices[rank]
    work.to(device)
    while (message := _receive(device)) is not None:
        weights, job = message
        dist.reduce(work.share(weights, job, rank, len(devices)), 0)
    dist.destroy_process_group()


def _end_with_parent() -> None:
    """A first process that was killed cannot say so; without it there is nothing to do, and a GPU to give back."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _join(devices: Sequence[torch.device], rank: int, meeting: str) -> None:
    on_gpus = all(device.type == "cuda" for device in devices)
    if on_gpus:
        torch.cuda.set_device(devices[rank])
    else:
        # gloo would look the machine's name up, and listen where others on the network could reach it.
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=meeting, rank=rank, world_size=len(devices), timeout=_PATIENCE
    )


def _send(weights: Tensor | None, job: Job | None, device: torch.device) -> None:
    """To all other processes; None: go home."""
    if weights is None or job is None:
        dist.broadcast(torch.tensor([-1, -1], device=device), 0)
        return
    packed = bytearray(safetensors.torch.save({name: tensor.contiguous() for name, tensor in job.items()}))
    dist.broadcast(torch.tensor([len(weights), len(packed)], device=device), 0)
    dist.broadcast(weights.contiguous(), 0)
    dist.broadcast(torch.frombuffer(packed, dtype=torch.uint8).to(device), 0)


def _receive(device: torch.device) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Counterpart of `_send`."""
    lengths = torch.empty(2, dtype=torch.int64, device=device)
    dist.broadcast(lengths, 0)
    if lengths[0] < 0:
        return None
    weights = torch.empty(int(lengths[0]), device=device)
    dist.broadcast(weights, 0)
    packed = torch.empty(int(lengths[1]), dtype=torch.uint8, device=device)
    dist.broadcast(packed, 0)
    return weights, safetensors.torch.load(packed.cpu().numpy().tobytes())
