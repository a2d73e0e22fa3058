"""Which devices to compute on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from privimage.config.performance import Performance
from privimage.errors import ConfigError

__all__ = [
    "choose_device",
    "choose_devices",
    "choose_precision",
    "free_memory",
    "rows_with_gradients",
    "rows_without_gradients",
]

# With fewer a GPU waits for the next call; with more a CPU's activations leave the cache.
_ROWS_ON_A_CPU, _ROWS_ON_A_GPU = 256, 2048
_BYTES_ON_A_CPU = 1 << 30


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


def choose_precision(performance: Performance, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision of `performance.precision` on this device; 'auto' takes bfloat16 where the hardware multiplies in it.

    Measured on two machines: on a CPU with AVX512-BF16 a step of pre-training takes 0.55 of float32's time, with AMX a
    half to a third.
    """
    if performance.precision != "auto":
        return performance.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bfloat16" if fast else "float32"


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


def rows_with_gradients(performance: Performance, device: torch.device, *, bytes_per_image: int, draws: int) -> int:
    """Rows (images x draws) to compute at once in fine-tuning: as configured, or as many as suit the device and fit.

    Raises:
        ConfigError: so many rows, or a single image's, do not fit the memory that is free or allowed.
    """
    free, wanted = free_memory(device), performance.physical_batch_size
    if wanted is not None:
        needed = -(-wanted // draws) * bytes_per_image
        if free is not None and needed > free:
            raise ConfigError(
                f"performance.physical_batch_size = {wanted} rows need about {needed / 2**30:.1f} GB, but {free / 2**30:.1f} GB "
                f"are free on {device}: lower it to at most {free // bytes_per_image * draws}, or set it to null."
            )
        return wanted
    if performance.memory_gb is not None:
        budget = int(performance.memory_gb * 2**30)
    elif device.type == "cpu" or free is None:
        budget = _BYTES_ON_A_CPU
    else:
        budget = free // 2
    if bytes_per_image > (free if performance.memory_gb is None and free is not None else budget):
        raise ConfigError(
            f"One image with its {draws} noise draws needs about {bytes_per_image / 2**30:.1f} GB in fine-tuning, more than "
            f"there is on {device}: lower generator.finetune.noise_samples or the denoiser's size, or raise performance.memory_gb."
        )
    most = _ROWS_ON_A_CPU if device.type == "cpu" else _ROWS_ON_A_GPU
    return max(1, min(budget // bytes_per_image, most // draws)) * draws


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on the device, as far as the system says; None where it does not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    try:  # of a container
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return free
