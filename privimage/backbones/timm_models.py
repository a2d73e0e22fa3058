"""Networks of timm as backbones (`methods.backbones.ready`), with the user's weights."""

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
    try:
        import timm
    except ImportError:
        raise ConfigError("backbone.kind is timm, which is not installed: pip install timm.") from None
    if not timm.is_model(name):
        raise ConfigError(f"backbone.name is {name!r}, but timm has no such network.")
    network: nn.Module = timm.create_model(name, pretrained=False)
    return network
