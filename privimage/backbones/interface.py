"""What stage `classifier` asks of a kind of backbone."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from privimage.methods.backbone import BackboneKind
from privimage.pipeline.stage import Outcome, StageContext
from privimage.semantics.backbone import Backbone
from privimage.store.artifacts import Artifact

__all__ = ["BackboneCode", "backbone_code_of"]


class BackboneCode(Protocol):
    """The module that a declaration names as `code`."""

    def run(self, context: StageContext) -> Outcome:
        """Write the backbone, trained or taken."""
        ...

    def open_backbone(self, artifact: Artifact) -> Backbone:
        """What `run` wrote, in evaluation mode, on the CPU."""
        ...


def backbone_code_of(settings: BackboneKind | type[BackboneKind]) -> BackboneCode:
    """The code of a kind, imported now."""
    return cast(BackboneCode, import_module(settings.code))
