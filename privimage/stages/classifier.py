"""Stage `classifier`: the backbone, a network that was trained on public images, now or by somebody else."""

from __future__ import annotations

from privimage.backbones.interface import backbone_code_of
from privimage.pipeline.stage import Outcome, StageContext

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes what the kind of backbone needs to be opened again."""
    return backbone_code_of(context.config.backbone).run(context)
