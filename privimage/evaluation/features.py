"""From images to feature vectors: clean-fid's Inception, or any network that the caller has.

Images are uint8, shape (images, channels, height, width); features are float64, shape (images, features). Nothing
here downloads anything, knows which images are sensitive, or compares features: that is `fidelity`.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor

from privimage.errors import DataError

__all__ = ["FeatureExtractor", "inception_extractor", "network_extractor"]

INCEPTION_FILE = "inception-2015-12-05.pt"
# Of NVIDIA's file, which clean-fid downloads without looking at its digest; k-diffusion pins the same.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_BATCH = 32
CLEANFID_FOLDER = "." if platform.system() == "Windows" else "/tmp"  # noqa: S108 - where clean-fid itself looks

Images = np.ndarray | Tensor


class FeatureExtractor(Protocol):
    """Anything with a name that turns uint8 images into one float64 row each."""

    @property
    def name(self) -> str:
        """What a table calls these features."""

    def __call__(self, images: Images) -> np.ndarray:
        """Features, shape (images, features), of uint8 images, shape (images, channels, height, width)."""

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Of the network's categories, shape (images, categories), for features; None where it has no categories."""


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A feature extractor that feeds prepared batches to a callable."""

    name: str
    fn: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    device: torch.device
    batch_size: int
    head: Callable[[Tensor], Tensor] | None

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        if self.head is None:
            return None
        with torch.inference_mode():
            logits = self.head(torch.tensor(features, dtype=torch.float32, device=self.device))
            return np.asarray(logits.double().softmax(dim=1).cpu().numpy())

    def __call__(self, images: Images) -> np.ndarray:
        rows = [self._features(batch) for batch in _batches(_checked(images), self.batch_size)]
        return np.concatenate(rows)

    def _features(self, batch: Tensor) -> np.ndarray:
        with torch.inference_mode():
            features = self.fn(self.prepare(batch).to(self.device))
        if features.ndim != 2 or len(features) != len(batch):
            raise DataError(
                f"The feature extractor {self.name!r} returned shape {tuple(features.shape)} for {len(batch)} images, "
                "expected (images, features): pool or flatten its output."
            )
        return np.asarray(features.cpu().numpy(), dtype=np.float64)


def network_extractor(
    name: str,
    fn: Callable[[Tensor], Tensor],
    device: torch.device | str,
    batch_size: int,
    head: Callable[[Tensor], Tensor] | None = None,
) -> FeatureExtractor:
    """Extractor around a callable, such as the public classifier without its last layer.

    Args:
        name: what a table calls these features.
        fn: float32 images in [-1, 1], shape (images, channels, height, width), on `device`, to features, shape
            (images, features). A module must be in evaluation mode already.
        batch_size: images given to `fn` at once; changes no feature of a network in evaluation mode.
        head: features to the logits of the network's categories, if it has any.
    """
    return _Network(
        name=name,
        fn=fn,
        prepare=lambda batch: batch / 127.5 - 1,
        device=torch.device(device),
        batch_size=batch_size,
        head=head,
    )


def inception_extractor(weights_folder: str | None, device: torch.device | str) -> FeatureExtractor:
    """The Inception network of clean-fid, with its resizing: 2,048 features an image, comparable to published FIDs.

    Gray images are repeated to three channels. The weights are never downloaded.

    Args:
        weights_folder: folder with `inception-2015-12-05.pt`; None = where clean-fid keeps its download.

    Raises:
        DataError: the weights are not there, or are others than the published ones: a figure of other weights would be
            comparable to nothing, and a TorchScript file can do more than compute.

    Source: Parmar, Zhang and Zhu (2022), arXiv:2104.11222.
    """
    folder = _weights_folder(weights_folder)
    device = torch.device(device)
    with warnings.catch_warnings():
        # The published weights are TorchScript; torch announces its end at each load.
        warnings.simplefilter("ignore", FutureWarning)
        network = InceptionV3W(str(folder), download=False, resize_inside=False).to(device).eval()
    # Without the bias, as the Inception Score was defined.
    categories: Tensor = network.base.output.weight.detach()
    return _Network(
        name="inception",
        fn=network,
        prepare=_clean_resize,
        device=device,
        batch_size=INCEPTION_BATCH,
        head=lambda features: features @ categories.T,
    )


def _weights_folder(given: str | None) -> Path:
    """The folder that holds the published weights."""
    folder = Path(CLEANFID_FOLDER if given is None else given)
    file = folder / INCEPTION_FILE
    if not file.is_file():
        raise DataError(
            f"No Inception weights at {file}: put clean-fid's file of this name into a folder and name the folder in "
            "evaluate.inception_weights."
        )
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != INCEPTION_SHA256:
        raise DataError(
            f"The Inception weights at {file} have SHA-256 {found}, expected {INCEPTION_SHA256}: download clean-fid's "
            "file again."
        )
    return folder


def _clean_resize(batch: Tensor) -> Tensor:
    """Images of 299 x 299 in [0, 255], float32, three channels, resized as clean-fid does it."""
    resize = build_resizer("clean")
    three = batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch
    rows = [resize(image) for image in three.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def _checked(images: Images) -> Tensor:
    """The images as a tensor on the CPU, once their form is what it must be."""
    tensor = images.cpu() if isinstance(images, Tensor) else torch.tensor(images)
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[1] not in (1, 3) or not len(tensor):
        raise DataError(
            f"Features need at least one uint8 image of shape (images, 1 or 3, height, width), found {tensor.dtype} of "
            f"shape {tuple(tensor.shape)}."
        )
    return tensor


def _batches(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Consecutive slices."""
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))
