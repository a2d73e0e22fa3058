"""What networks of libraries have in common: found by name, their weights read from a file of the user's."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from privimage.backbones.pooled import PooledLayers, load_into, read_weights, weights_of, write_ready
from privimage.errors import ConfigError
from privimage.methods.backbones.ready import ReadyNetwork
from privimage.methods.registry import BACKBONES
from privimage.payloads import BackboneAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.artifacts import Artifact

__all__ = ["open_ready", "run_ready"]

FindsNetwork = Callable[[str], nn.Module]


def run_ready(context: StageContext, network_named: FindsNetwork) -> Outcome:
    """Stage `classifier` of such a kind."""
    settings = context.config.backbone
    if not isinstance(settings, ReadyNetwork):
        raise ConfigError(f"The backbone is one with your weights, but the settings are of kind {settings.kind}.")
    network = network_named(settings.name)
    load_into(network, read_weights(settings.weights, settings.sha256), settings.name)
    about = BackboneAbout(
        kind=settings.kind,
        name=settings.name,
        trained_on=settings.trained_on,
        weights_sha256=settings.sha256,
        settings=settings.model_dump(mode="json", exclude={"weights"}),
        num_features=_pooled(network, settings).num_features,
    )
    return write_ready(context, network, about)


def open_ready(artifact: Artifact, network_named: FindsNetwork) -> PooledLayers:
    """What `run_ready` wrote."""
    about = BackboneAbout.read(artifact)
    settings = BACKBONES.named(about.kind).model_validate({**about.settings, "weights": "in the store"})
    if not isinstance(settings, ReadyNetwork):
        raise ConfigError(f"A backbone of kind {about.kind} is none with weights of the user's.")
    network = network_named(settings.name)
    load_into(network, weights_of(artifact), settings.name)
    return _pooled(network, settings)


def _pooled(network: nn.Module, settings: ReadyNetwork) -> PooledLayers:
    return PooledLayers(
        network,
        settings.layers,
        name=settings.name,
        input_size=settings.input_size,
        mean=settings.mean,
        std=settings.std,
    )
