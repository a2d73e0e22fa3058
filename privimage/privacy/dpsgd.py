"""One step of DP-SGD: a clipped sum over a Poisson batch, noise on the sum, division by the expected batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from privimage.errors import PrivacyRefused
from privimage.privacy.clipping import ClippedSum
from privimage.privacy.entropy import Random
from privimage.privacy.mechanisms import DPSGDMechanism

__all__ = ["noisy_mean_gradient"]


def noisy_mean_gradient(clipped: ClippedSum, mechanism: DPSGDMechanism, random: Random) -> Tensor:
    """The released gradient of one step: (sum + noise) / expected batch size, a flat float32 vector.

    Guarantee: N(0, mechanism.noise_stddev^2) is added to every coordinate of the sum, once, also for an empty batch.
    The divisor is public; nothing depends on the true size of the batch.

    Raises:
        PrivacyRefused: the sum was clipped to another norm than the mechanism accounts for.
    """
    if clipped.sensitivity != mechanism.sensitivity:
        raise PrivacyRefused(
            f"The sum has sensitivity {clipped.sensitivity}, the accounted mechanism {mechanism.sensitivity}."
        )
    noise = torch.from_numpy(random.normal(clipped.value.numel())).to(clipped.value.device, torch.float32)
    return (clipped.value + mechanism.noise_stddev * noise) / mechanism.expected_batch_size
