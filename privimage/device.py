"""Which devices to compute on."""

from __future__ import annotations

import torch

from privimage.config import Performance
from privimage.errors import ConfigError

__all__ = ["choose_device", "choose_devices", "rows_without_gradients"]

# With fewer a GPU waits for the next call; with more a CPU's activations leave the cache.
_ROWS_ON_A_CPU, _ROWS_ON_A_GPU = 256, 2048


def choose_device(wanted: str) -> torch.device:
    """The device of `performance.device`; 'auto' takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: the device is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    device = torch.device(wanted)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ConfigError(f"performance.device is {wanted!r}, which this machine does not have; use 'auto' or 'cpu'.")
    return device


def choose_devices(performance: Performance) -> list[torch.device]:
    """The devices that share a stage's work; the first is the stage's own. On a CPU, one entry per process.

    Raises:
        ConfigError: the machine has fewer, or the device was given by number and more than one is asked for.
    """
    device, wanted = choose_device(performance.device), performance.num_devices
    if device.type != "cuda" or device.index is not None:
        several = wanted or 1
        if several > 1 and device.type != "cpu":
            raise ConfigError(
                f"performance.num_devices is {several}, but performance.device = {performance.device!r} is a single one: "
                "set the device to 'cuda' for several GPUs, or num_devices to 1."
            )
        return [device] * several
    found = torch.cuda.device_count()
    if wanted is not None and wanted > found:
        raise ConfigError(f"performance.num_devices is {wanted}, but this machine has {found} GPUs; lower it.")
    return [torch.device("cuda", number) for number in range(wanted or found)]


def rows_without_gradients(performance: Performance, device: torch.device) -> int:
    """Rows to compute at once where no gradients are taken, as in sampling and scoring."""
    return performance.physical_batch_size or (_ROWS_ON_A_CPU if device.type == "cpu" else _ROWS_ON_A_GPU)
