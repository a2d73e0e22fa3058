"""Which device to compute on."""

from __future__ import annotations

import torch

from privimage.errors import ConfigError

__all__ = ["choose_device"]


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
