"""Many images: the same for every batch size and device count, in order, a few batches at a time, on threads that end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.generators.diffusion.denoiser import Denoiser
from privimage.generators.sampling import batches as shards
from privimage.generators.sampling.batches import num_batches, sample_in_order
from privimage.generators.sampling.sampler import synthesize_images

NewDenoiser = Callable[..., Denoiser]
SHAPE = (1, 8, 8)
NUM, SEED = 100, 7


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch may use."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def cpus(count: int) -> list[torch.device]:
    return [torch.device("cpu")] * count


def sampled(denoiser: Denoiser, devices: int, rows: int) -> tuple[NDArray[np.uint8], list[int]]:
    batches = list(sample_in_order(denoiser, SHAPE, range(NUM), SEED, cpus(devices), rows))
    assert len(batches) == num_batches(NUM, cpus(devices), rows)
    return np.concatenate([images for images, _ in batches]), [label for _, labels in batches for label in labels]


def test_batch_size_device_count_and_threads_change_no_bit(awake: NewDenoiser, threads: Callable[[int], None]) -> None:
    denoiser = awake(num_classes=3, base_channels=24)
    images, labels = sampled(denoiser, 1, 256)
    assert images.shape == (100, *SHAPE) and images.dtype == np.uint8
    assert labels == [number % 3 for number in range(100)]
    for torch_threads, devices, rows in ((1, 2, 64), (1, 3, 7), (2, 1, 50), (3, 1, 64), (8, 2, 256)):
        threads(torch_threads)
        again, same_labels = sampled(denoiser, devices, rows)
        assert np.array_equal(again, images), f"{torch_threads} threads, {devices} devices, {rows} rows"
        assert same_labels == labels


def test_images_are_those_of_their_seeds_whatever_range_they_are_asked_for_in(awake: NewDenoiser) -> None:
    denoiser = awake()
    images, _ = sampled(denoiser, 2, 20)
    numbers = torch.arange(90, 100)
    expected = synthesize_images(denoiser, numbers % 2, numbers + (7 << 32), SHAPE)
    assert np.array_equal(images[90:], expected.numpy())
    for numbers in (range(33), range(40, 61)):
        (part,) = sample_in_order(denoiser, SHAPE, numbers, SEED, cpus(1), 64)
        assert np.array_equal(part[0], images[numbers.start : numbers.stop])
        assert part[1] == [number % 2 for number in numbers]


def test_each_worker_computes_in_one_thread_of_its_own_and_the_setting_comes_back(
    awake: NewDenoiser, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, int]] = set()
    meet = threading.Barrier(4)

    def watched(denoiser: Denoiser, labels: Tensor, *rest: object) -> Tensor:
        meet.wait(timeout=30)  # fails unless four are at work at once
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return torch.zeros(len(labels), *SHAPE, dtype=torch.uint8)

    monkeypatch.setattr(shards, "synthesize_images", watched)
    threads(4)
    assert len(list(sample_in_order(awake(), SHAPE, range(160), SEED, cpus(2), 10))) == 16
    assert len(seen) == 4 and {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 4


def test_no_more_than_two_batches_a_worker_are_begun_before_the_first_is_taken(
    awake: NewDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def counted(denoiser: Denoiser, labels: Tensor, seeds: Tensor, *rest: object) -> Tensor:
        begun.append(int(seeds[0]) & 0xFFFFFFFF)
        return torch.zeros(len(labels), *SHAPE, dtype=torch.uint8)

    monkeypatch.setattr(shards, "synthesize_images", counted)
    running = threading.active_count()
    with closing(sample_in_order(awake(), SHAPE, range(10_000_000), SEED, cpus(2), 10)) as batches:
        for taken in range(1, 6):
            next(batches)
            assert max(begun) < 10 * (taken + 4)
    assert threading.active_count() == running, "closing ends the threads"


def test_an_error_in_a_worker_reaches_the_caller_and_ends_the_others(
    awake: NewDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(denoiser: Denoiser, labels: Tensor, seeds: Tensor, *rest: object) -> Tensor:
        if int(seeds[0]) & 0xFFFFFFFF == 20:
            raise RuntimeError("out of memory")
        return torch.zeros(len(labels), *SHAPE, dtype=torch.uint8)

    monkeypatch.setattr(shards, "synthesize_images", failing)
    running = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        list(sample_in_order(awake(), SHAPE, range(100), SEED, cpus(2), 10))
    assert threading.active_count() == running
