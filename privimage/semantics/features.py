"""What a backbone sees in images, as rows of numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privimage.data.pixels import from_pixels
from privimage.semantics.classifier import ResNet

__all__ = ["features_of"]

AT_ONCE = 256


@torch.no_grad()
def features_of(network: ResNet, images: Tensor, device: torch.device) -> NDArray[np.float32]:
    """Features, float32 (images, features), of uint8 NCHW images; each row of its own image alone."""
    network.eval()
    parts = [network.activations(from_pixels(part.to(device))).float().cpu() for part in images.split(AT_ONCE)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)
