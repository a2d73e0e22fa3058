"""One step of DP-SGD: a clipped sum over a Poisson batch, noise on the sum, division by the expected batch size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.errors import PrivacyRefused
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.entropy import Random
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.privacy.numerics import MOST_DRAWS, PER_STDDEV

__all__ = ["noisy_mean_gradient", "noisy_points"]


def noisy_mean_gradient(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Random) -> Tensor:
    """The released gradient of one step: (sum + noise) / expected batch size, a flat float32 vector.

    Guarantee: N(0, mechanism.noise_stddev^2) is added to every coordinate of the sum, once, also for an empty batch, and
    the result is rounded to multiples of noise_stddev / 64 before anything else is done with it: which numbers can
    occur does not depend on the sum (`numerics.py` has the bounds). The divisor is public; nothing depends on the true
    size of the batch.

    Raises:
        PrivacyRefused: the sum was clipped to another norm than the mechanism accounts for, or has more numbers than the
            bounds on rounding hold for.
    """
    if clipped.sensitivity != mechanism.sensitivity:
        raise PrivacyRefused(
            f"The sum has sensitivity {clipped.sensitivity}, the accounted mechanism {mechanism.sensitivity}."
        )
    size, steps = clipped.value.numel(), mechanism.num_steps + mechanism.restart_allowance
    if size * steps > MOST_DRAWS:
        raise PrivacyRefused(
            f"{steps} steps on {size} weights draw more numbers than the bounds on rounding allow ({MOST_DRAWS:.3g}): "
            "take fewer steps, or a smaller network."
        )
    unit = mechanism.noise_stddev / PER_STDDEV
    points = noisy_points(clipped.value.detach().cpu().numpy(), unit, random.normal(size))
    released = points * (unit / mechanism.expected_batch_size)
    return torch.from_numpy(released).to(clipped.value.device, torch.float32)


def noisy_points(value: NDArray[np.float32], unit: float, normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """`value` plus PER_STDDEV * unit * `normal`, rounded to whole numbers of `unit`: integers, as float64.

    The whole part of the value is set aside before noise is added, so that no rounding of the sum grows with it.
    """
    exact = value.astype(np.float64) / unit
    whole = np.rint(exact)
    return np.asarray(whole + np.rint((exact - whole) + PER_STDDEV * normal), dtype=np.float64)
