"""Sampling of any number of images on several devices: batches in order, bounded memory, the same images everywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.generators.interface import ImageSource
from privimage.generators.sampling.class_sizes import labels_of
from privimage.generators.sampling.sampler import synthesize_images

__all__ = ["num_batches", "sample_in_order"]

Batch = tuple[NDArray[np.uint8], list[int]]

# Finished or under way, for each worker: while one is written to disk, the worker has the next to go on with.
_BATCHES_AHEAD = 2
# More leave a core's cache, and share out less evenly.
_ROWS_ON_A_CORE = 64


def num_batches(num_images: int, devices: Sequence[torch.device], rows: int) -> int:
    """How many batches `sample_in_order` makes of so many images."""
    return -(-num_images // _rows(devices, rows))


def sample_in_order(
    generator: ImageSource,
    shape: tuple[int, int, int],
    images: range,
    seed: int,
    devices: Sequence[torch.device],
    rows: int,
    shares: Sequence[float] | None = None,
) -> Generator[Batch, None, None]:
    """Yields uint8 NCHW images with the numbers `images`, and their labels, `rows` at a time at most.

    Image i is of the class that `labels_of` says, with `shares` of the classes, and made of the seed pair (seed, i). Batches are cut
    without regard to the number of devices, which therefore changes nothing. On CPUs `rows` and the range that an image is
    asked for in change nothing either, to the bit; on a GPU they may change it as `synthesize_images` says. At most two
    batches for each worker are held. Close the iterator if it is not used up: that waits for the batches under way.

    Each GPU is given batches by a thread of its own. CPUs share out the threads that torch may use, and each of them
    makes batches by itself: threads that share one batch wait for each other, and round by how many they are.
    """
    workers = _workers(devices)
    replicas = {device: deepcopy(generator).to(device) for device in workers}
    step = _rows(devices, rows)

    def sample(device: torch.device, numbers: range) -> Batch:
        numbered = torch.arange(numbers.start, numbers.stop)
        labels = labels_of(numbered, generator.num_classes, shares)
        seeds = numbered + (seed << 32)
        return synthesize_images(replicas[device], labels, seeds, shape).numpy(), labels.tolist()

    under_way: deque[Future[Batch]] = deque()
    with ExitStack() as stack:
        stack.enter_context(_one_thread_each(workers))
        pools = [stack.enter_context(ThreadPoolExecutor(1, "sample")) for _ in workers]
        stack.callback(lambda: [future.cancel() for future in under_way])
        for batch, start in enumerate(images[::step]):
            if len(under_way) == _BATCHES_AHEAD * len(workers):
                yield under_way.popleft().result()
            turn = batch % len(workers)
            numbers = range(start, min(start + step, images.stop))
            under_way.append(pools[turn].submit(sample, workers[turn], numbers))
        while under_way:
            yield under_way.popleft().result()


def _rows(devices: Sequence[torch.device], rows: int) -> int:
    return min(rows, _ROWS_ON_A_CORE) if devices[0].type == "cpu" else rows


def _workers(devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each worker: of a CPU, as many as there are threads for it."""
    threads = max(1, torch.get_num_threads() // len(devices))
    return [device for device in devices for _ in range(threads if device.type == "cpu" else 1)]


@contextmanager
def _one_thread_each(workers: Sequence[torch.device]) -> Iterator[None]:
    """Inside, threads that are started compute alone, if they compute on a CPU."""
    before = torch.get_num_threads()
    if workers[0].type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
