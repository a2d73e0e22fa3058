"""Networks of torchvision as backbones (`methods.backbones.ready`), with the user's weights."""

from __future__ import annotations

from torch import nn

from privimage.backbones.library import open_ready, run_ready
from privimage.backbones.pooled import PooledLayers
from privimage.errors import ConfigError
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.artifacts import Artifact

__all__ = ["open_backbone", "run"]


def run(context: StageContext) -> Outcome:
    return run_ready(context, _network)


def open_backbone(artifact: Artifact) -> PooledLayers:
    return open_ready(artifact, _network)


def _network(name: str) -> nn.Module:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ConfigError(
            f"backbone.name is {name!r}, but torchvision has no such network; it has resnet18, for example."
        )
    network: nn.Module = get_model(name, weights=None)
    return network
