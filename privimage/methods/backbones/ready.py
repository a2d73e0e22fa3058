"""Networks that somebody else trained: ready at once, and they have seen more than a public set of some thousand images."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from privimage.config.classifier import ClassifierConfig
from privimage.methods.backbone import BackboneKind

__all__ = ["EfficientNetLite0", "ReadyNetwork", "Timm", "Torchvision"]


class EfficientNetLite0(BackboneKind):
    """EfficientNet-Lite0, trained on ImageNet, from the packages of `privimage[backbones]`; its weights are pinned by digest."""

    code: ClassVar[str] = "privimage.backbones.efficientnet_lite0"

    kind: Literal["efficientnet_lite0"] = Field(
        default="efficientnet_lite0",
        description="EfficientNet-Lite0, trained on ImageNet (pip install privimage[backbones]).",
    )
    input_size: int = Field(
        default=96,
        ge=32,
        le=224,
        multiple_of=32,
        title="Input size",
        description="Pixels that images are enlarged to; larger tells more, in more time.",
    )


class ReadyNetwork(BackboneKind):
    """A network of a library, with a file of weights that the user has."""

    def fields_of(self, classifier: ClassifierConfig) -> dict[str, Any]:
        """Not where the file lies: its digest says what it is."""
        return {"backbone": self.model_dump(mode="json", exclude={"weights"})}

    name: str = Field(pattern=r"^[a-zA-Z0-9_.]+$", description="As the library calls it, such as resnet18.")
    weights: str = Field(
        description="Path of a file with its weights, .safetensors or what torch.save wrote; nothing in it is executed."
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of this file: other weights are another backbone.")
    trained_on: str = Field(
        min_length=1, description="What images it was trained on: the certificate names them, and they must be public."
    )
    layers: tuple[str, ...] = Field(
        min_length=1,
        description="Modules whose outputs are averaged over the image and put side by side, such as layer2, layer3.",
    )
    input_size: int = Field(
        default=96, ge=16, le=1024, title="Input size", description="Pixels that images are enlarged to."
    )
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="Taken off each colour, of pixels in [0, 1]."
    )
    std: tuple[float, float, float] = Field(
        default=(0.229, 0.224, 0.225), description="What each colour is then divided by."
    )


class Torchvision(ReadyNetwork):
    """A network of torchvision."""

    code: ClassVar[str] = "privimage.backbones.torchvision_models"

    kind: Literal["torchvision"] = Field(
        default="torchvision", description="A network of torchvision, with your weights."
    )


class Timm(ReadyNetwork):
    """A network of timm, which has to be installed."""

    code: ClassVar[str] = "privimage.backbones.timm_models"

    kind: Literal["timm"] = Field(
        default="timm", description="A network of timm (pip install timm), with your weights."
    )
