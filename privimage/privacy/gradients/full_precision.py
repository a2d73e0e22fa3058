"""Private sums are computed in whole float32, whatever was switched on outside.

TF32 and bfloat16 keep 8 to 11 bits of what is multiplied. Clipping leaves room for an error of 6e-5 of the bound (14 bits), so a
sum of clipped gradients by such a product could pass the bound. A user, another library or an environment variable may have
switched them on for the whole process. `performance.precision: bfloat16` is another thing: it is of forward and backward passes,
whose results are clipped afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from privimage.errors import ConfigError

__all__ = ["full_float32"]

_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices keep 24 bits in here; afterwards all is as it was.

    Raises:
        ConfigError: an environment variable that torch obeys before everything else asks for less.
    """
    if os.environ.get(_OVERRIDE, "0") not in ("", "0"):
        raise ConfigError(f"{_OVERRIDE} is set: with TF32, clipped gradients may be longer than their bound. Unset it.")
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
