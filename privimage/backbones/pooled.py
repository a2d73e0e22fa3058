"""A ready network whose inner layers are averaged over the image: the features of `ReadyNetwork` and its like."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from privimage.errors import ConfigError, DataError
from privimage.payloads import BackboneAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.semantics.backbone import Backbone
from privimage.store.artifacts import Artifact
from privimage.store.weights import save_weights

__all__ = ["PooledLayers", "load_into", "read_weights", "weights_of", "write_ready"]


class PooledLayers(Backbone):
    """Enlarged images through `network`; the outputs of some of its modules, averaged over the image, side by side.

    Gray images are repeated to three channels.

    Args:
        layers: names of modules that give feature maps, (batch, channels, height, width).
        mean, std: of each colour, of pixels in [0, 1].

    Raises:
        ConfigError: there is no module of such a name, or it gives no feature maps.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        name: str,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network, self.name, self.input_size = network.eval(), name, input_size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        modules = dict(network.named_modules())
        self._maps: dict[str, Tensor] = {}
        for layer in layers:
            if layer not in modules:
                raise ConfigError(
                    f"backbone.layers names {layer!r}, but {name} has no such module; it has {', '.join(n for n in modules if n)[:500]}."
                )
            modules[layer].register_forward_hook(self._keeper(layer))
        self.layers = tuple(layers)
        with torch.no_grad():
            self.num_features = int(self.describe(torch.zeros(1, 3, input_size, input_size)).shape[1])

    def describe(self, images: Tensor) -> Tensor:
        three = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        size = (self.input_size, self.input_size)
        large = functional.interpolate(three, size=size, mode="bicubic", align_corners=False, antialias=True)
        pixels = (large.clamp(-1, 1) + 1) / 2
        self.network((pixels - self.get_buffer("mean")) / self.get_buffer("std"))
        found = [self._maps[layer] for layer in self.layers]
        self._maps.clear()
        if any(each.ndim != 4 for each in found):
            raise ConfigError(f"backbone.layers of {self.name} must give feature maps: name convolutional modules.")
        return torch.cat([each.mean(dim=(2, 3)) for each in found], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        return self.describe(images)

    def _keeper(self, layer: str) -> Any:
        def keep(module: nn.Module, given: object, found: Tensor) -> None:
            self._maps[layer] = found

        return keep


def read_weights(path: str, sha256: str) -> dict[str, Tensor]:
    """The tensors in a file of weights, read without executing anything.

    Raises:
        DataError: it is missing, another file than was named, or holds something else than tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"No weights at {path} (backbone.weights): put the file there, or name its place.")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise DataError(
            f"The weights at {path} have SHA-256 {found}, expected {sha256}: these are others. Name theirs, or get those."
        )
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle that is refused next
            held = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        raise DataError(
            f"The weights at {path} are no plain tensors ({type(error).__name__}): save the state dict alone."
        ) from None
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not all(isinstance(each, Tensor) for each in held.values()):
        raise DataError(f"The weights at {path} hold something else than tensors: save the state dict alone.")
    return dict(held)


def load_into(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give a network its weights.

    Raises:
        DataError: they are of another network.
    """
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()[:300]
        raise DataError(f"The weights are not those of {what}: {first}") from None


def write_ready(context: StageContext, network: nn.Module, about: BackboneAbout) -> Outcome:
    """Write a ready network's weights, and what rebuilds it."""
    save_weights(network.state_dict(), context.folder / BackboneAbout.WEIGHTS)
    about.write(context.folder)
    return Outcome(metrics={"num_features": about.num_features})


def weights_of(artifact: Artifact) -> dict[str, Tensor]:
    """What `write_ready` wrote."""
    return load_file(artifact.local(BackboneAbout.WEIGHTS))
