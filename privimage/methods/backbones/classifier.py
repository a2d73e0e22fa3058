"""The classifier that a run trains on its own public images (section `classifier`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from privimage.config.classifier import ClassifierConfig
from privimage.methods.backbone import BackboneKind

__all__ = ["Classifier"]


class Classifier(BackboneKind):
    """A residual network, trained on the public images to tell their categories."""

    code: ClassVar[str] = "privimage.backbones.classifier"
    knows_categories: ClassVar[bool] = True

    kind: Literal["classifier"] = Field(default="classifier", description="Trained on the public images of the run.")

    def fields_of(self, classifier: ClassifierConfig) -> dict[str, Any]:
        return {"classifier": classifier.model_dump(mode="json")}
