"""What a backbone declares: a network trained on public images, in whose features sensitive and public ones are compared."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from privimage.config.classifier import ClassifierConfig
from privimage.config.form import Section

__all__ = ["BackboneKind"]


class BackboneKind(Section):
    """The settings of a backbone, which are also the declaration of its kind.

    Attributes:
        code: the module with its code (`backbones.interface.BackboneCode`), imported when it runs.
        knows_categories: whether it tells public categories, so that sensitive images can vote for them.
    """

    code: ClassVar[str]
    knows_categories: ClassVar[bool] = False

    kind: str = Field(description="Name of the kind.")

    def fields_of(self, classifier: ClassifierConfig) -> dict[str, Any]:
        """The settings that can change what stage `classifier` makes."""
        return {"backbone": self.model_dump(mode="json")}
